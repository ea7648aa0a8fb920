/* A stand-in for the compiled kernel: only what the build, ema-avg version and the report need. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef SOURCE_CRC32
#define SOURCE_CRC32 -1 /* not built by setup.py: kernel.py does not use it */
#endif

static PyObject *lane(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return PyUnicode_FromString("avx512");
    if (__builtin_cpu_supports("avx2"))
        return PyUnicode_FromString("avx2");
#elif defined(__aarch64__)
    return PyUnicode_FromString("neon");
#endif
    return PyUnicode_FromString("baseline");
}

static PyMethodDef functions[] = {
    {"lane", lane, METH_NOARGS, "Return the instruction set in use."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    PyObject *crc = PyLong_FromLongLong(SOURCE_CRC32);
    int failed = crc == NULL || PyModule_AddObjectRef(module, "SOURCE_CRC32", crc) < 0;
    Py_XDECREF(crc);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_doc = "The compiled kernel of the fold.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&definition);
}
