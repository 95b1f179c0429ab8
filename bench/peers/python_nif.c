/* Python inside a BEAM, as libraries like Pythonx have it: bench/instead.py.
 *
 * erlang:load_nif(Path, {Library, Executable, Folder}) starts the interpreter of that executable
 * and takes `handler_of("tumen")` of jobs.py in that folder; python_call(Binary) hands it the bytes
 * of a term, on a dirty scheduler, and gives its bytes back.
 */
#include <Python.h>

#include <dlfcn.h>
#include <erl_nif.h>

#define PATH_BYTES_MAX 4096

typedef struct {
    PyObject *handle;
} interpreter;

static int get_path(ErlNifEnv *env, ERL_NIF_TERM term, char *path)
{
    return enif_get_string(env, term, path, PATH_BYTES_MAX, ERL_NIF_LATIN1) > 0;
}

static int start(const char *executable)
{
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, executable);
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    PyConfig_Clear(&config);
    return PyStatus_Exception(status) ? -1 : 0;
}

static PyObject *take_handler(const char *folder)
{
    PyObject *path = PySys_GetObject("path");
    PyObject *entry = PyUnicode_FromString(folder);
    if (path == NULL || entry == NULL || PyList_Append(path, entry) < 0) {
        Py_XDECREF(entry);
        return NULL;
    }
    Py_DECREF(entry);
    PyObject *jobs = PyImport_ImportModule("jobs");
    if (jobs == NULL) {
        return NULL;
    }
    PyObject *handle = PyObject_CallMethod(jobs, "handler_of", "s", "tumen");
    Py_DECREF(jobs);
    return handle;
}

static int load(ErlNifEnv *env, void **data, ERL_NIF_TERM info)
{
    static char library[PATH_BYTES_MAX], executable[PATH_BYTES_MAX], folder[PATH_BYTES_MAX];
    const ERL_NIF_TERM *parts;
    int arity;
    if (!enif_get_tuple(env, info, &arity, &parts) || arity != 3 ||
        !get_path(env, parts[0], library) || !get_path(env, parts[1], executable) ||
        !get_path(env, parts[2], folder)) {
        return 1;
    }
    /* Extension modules look for Python's symbols among the global ones. */
    if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) == NULL) {
        return 2;
    }
    if (start(executable) < 0) {
        return 3;
    }
    PyObject *handle = take_handler(folder);
    if (handle == NULL) {
        PyErr_Print();
        return 4;
    }
    interpreter *own = enif_alloc(sizeof *own);
    own->handle = handle;
    *data = own;
    PyEval_SaveThread();
    return 0;
}

static ERL_NIF_TERM python_call(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    ErlNifBinary request;
    if (argc != 1 || !enif_inspect_binary(env, argv[0], &request)) {
        return enif_make_badarg(env);
    }
    interpreter *own = enif_priv_data(env);
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *data =
        PyBytes_FromStringAndSize((const char *)request.data, (Py_ssize_t)request.size);
    PyObject *answer = data == NULL ? NULL : PyObject_CallOneArg(own->handle, data);
    Py_XDECREF(data);
    ERL_NIF_TERM result;
    char *bytes;
    Py_ssize_t size;
    if (answer != NULL && PyBytes_AsStringAndSize(answer, &bytes, &size) == 0) {
        memcpy(enif_make_new_binary(env, (size_t)size, &result), bytes, (size_t)size);
    } else {
        PyErr_Print();
        result = enif_raise_exception(env, enif_make_atom(env, "python"));
    }
    Py_XDECREF(answer);
    PyGILState_Release(state);
    return result;
}

static ErlNifFunc functions[] = {{"python_call", 1, python_call, ERL_NIF_DIRTY_JOB_CPU_BOUND}};

ERL_NIF_INIT(tumen_bench, functions, load, NULL, NULL, NULL)
