"""tumen: a Python process as a first-class node of an Erlang or Elixir cluster."""

from . import events, lowlevel, sync, typed
from ._core import lend
from ._term import (
    Atom,
    Binary,
    BitString,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Reference,
    TermMap,
    decode,
    encode,
)
from .app import App
from .batch import BatchServer, Call
from .broadcast import RpcResult
from .errors import (
    AuthError,
    Busy,
    CallTimeout,
    ChildError,
    DecodeError,
    EncodeError,
    Exit,
    LimitExceeded,
    NameClash,
    NoConnection,
    NoProc,
    ProcessExited,
    RemoteError,
    ServerDied,
    TumenError,
)
from .event_manager import GenEvent
from .node import Monitor, Node
from .options import Limits
from .process import Process
from .server import Caller, GenServer, NoReply, Stop, blocking
from .services.global_names import GlobalNames
from .services.pg import GroupChange, GroupMonitor, Groups
from .services.pubsub import PubSub, Subscription
from .supervisor import ChildSpec, Supervisor
from .typed import convert, mapped, record, struct
from .workers import current_call

__all__ = [
    "App",
    "Atom",
    "AuthError",
    "BatchServer",
    "Binary",
    "BitString",
    "Busy",
    "Call",
    "CallTimeout",
    "Caller",
    "ChildError",
    "ChildSpec",
    "DecodeError",
    "EncodeError",
    "Exit",
    "Export",
    "Fun",
    "GenEvent",
    "GenServer",
    "GlobalNames",
    "GroupChange",
    "GroupMonitor",
    "Groups",
    "ImproperList",
    "LimitExceeded",
    "Limits",
    "Monitor",
    "NameClash",
    "NoConnection",
    "NoProc",
    "NoReply",
    "Node",
    "Pid",
    "Port",
    "Process",
    "ProcessExited",
    "PubSub",
    "Reference",
    "RemoteError",
    "RpcResult",
    "ServerDied",
    "Stop",
    "Supervisor",
    "Subscription",
    "TermMap",
    "TumenError",
    "blocking",
    "convert",
    "current_call",
    "decode",
    "encode",
    "events",
    "lend",
    "lowlevel",
    "mapped",
    "record",
    "struct",
    "sync",
    "typed",
]
