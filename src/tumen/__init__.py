"""tumen: a Python process as a first-class node of an Erlang or Elixir cluster."""

from . import events, lowlevel, sync
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
from .errors import (
    AuthError,
    Busy,
    CallTimeout,
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
from .node import Monitor, Node
from .options import Limits
from .process import Process
from .server import Caller, GenServer, NoReply, Stop, blocking
from .services.global_names import GlobalNames
from .services.pg import GroupChange, GroupMonitor, Groups
from .services.pubsub import PubSub, Subscription
from .workers import current_call

__all__ = [
    "App",
    "Atom",
    "AuthError",
    "Binary",
    "BitString",
    "Busy",
    "CallTimeout",
    "Caller",
    "DecodeError",
    "EncodeError",
    "Exit",
    "Export",
    "Fun",
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
    "ServerDied",
    "Stop",
    "Subscription",
    "TermMap",
    "TumenError",
    "blocking",
    "current_call",
    "decode",
    "encode",
    "events",
    "lend",
    "lowlevel",
    "sync",
]
