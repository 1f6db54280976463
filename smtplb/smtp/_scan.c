/* The scanner of message bodies in C: smtplb/smtp/scan.py says what each function does, and does the same without this file.
 *
 * Built into wheels with SMTPLB_COMPILE=1 (scripts/hatch_compile.py). Invariant: reads no octet outside the object it is given.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

static PyObject *find_end(PyObject *module, PyObject *work)
{
    if (!PyBytes_Check(work)) {
        PyErr_SetString(PyExc_TypeError, "bytes expected");
        return NULL;
    }
    const char *start = PyBytes_AS_STRING(work);
    const char *end = start + PyBytes_GET_SIZE(work);
    /* From LF to LF: a line that is just a dot begins behind CR LF and is `.` CR LF. */
    for (const char *at = start; (at = memchr(at, '\n', end - at)) != NULL; at++) {
        if (end - at > 3 && at[1] == '.' && at[2] == '\r' && at[3] == '\n' && at > start && at[-1] == '\r') {
            return PyLong_FromSsize_t(at - 1 - start);
        }
    }
    return PyLong_FromLong(-1);
}

static PyObject *is_lawful(PyObject *module, PyObject *segment)
{
    if (!PyBytes_Check(segment)) {
        PyErr_SetString(PyExc_TypeError, "bytes expected");
        return NULL;
    }
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(segment);
    Py_ssize_t size = PyBytes_GET_SIZE(segment);
    /* No branches, so that compilers make vector code of it; in parts whose counts fit 32 bits. The octet behind the last
     * one is the NUL that every bytes object ends in. */
    for (Py_ssize_t at = 0; at < size;) {
        Py_ssize_t stop = size - at > 65536 ? at + 65536 : size;
        unsigned int wrong = 0;
        for (; at < stop; at++) {
            unsigned char octet = data[at];
            unsigned char next = data[at + 1];
            wrong |= (octet == 0) | ((octet == '\r') & (next != '\n')) | ((octet != '\r') & (next == '\n') & (at + 1 < size));
        }
        if (wrong) {
            Py_RETURN_FALSE;
        }
    }
    if (size > 0 && data[0] == '\n') {
        Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyMethodDef methods[] = {
    {"find_end", find_end, METH_O, NULL},
    {"is_lawful", is_lawful, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_scan", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModule_Create(&definition);
}
