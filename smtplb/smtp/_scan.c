/* The scanners in C: smtplb/smtp/scan.py says what each function does, and does the same without this file.
 *
 * Built into wheels with SMTPLB_COMPILE=1 (scripts/hatch_compile.py). Invariant: reads no octet outside the object it is given.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

/* Loops over a block have no exit in the middle, so that the compiler makes vector code of them; where the processor has wider
 * vectors, these are used (chosen by the dynamic linker of glibc; musl's cannot). */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif
#define BLOCK 4096

typedef unsigned char octet;

static int is_bytes(PyObject *given)
{
    if (PyBytes_Check(given)) {
        return 1;
    }
    PyErr_SetString(PyExc_TypeError, "bytes expected");
    return 0;
}

/* Whether an LF stands before a dot. `octets` has one more than `size`. */
WIDE static int has_dot_line(const octet *octets, Py_ssize_t size)
{
    octet found = 0;
    for (Py_ssize_t at = 0; at < size; at++) {
        found |= (octet)(octets[at] == '\n') & (octet)(octets[at + 1] == '.');
    }
    return found;
}

/* Whether an LF has no CR before it, a CR no LF behind it, or there is a NUL. `octets` has one more than `size`. */
WIDE static int has_wrong(const octet *octets, Py_ssize_t size)
{
    octet wrong = 0;
    for (Py_ssize_t at = 0; at < size; at++) {
        wrong |= (octet)((octets[at] == '\r') ^ (octets[at + 1] == '\n')) | (octet)(octets[at] == 0);
    }
    return wrong;
}

static PyObject *find_end(PyObject *module, PyObject *work)
{
    if (!is_bytes(work)) {
        return NULL;
    }
    const char *start = PyBytes_AS_STRING(work);
    const char *end = start + PyBytes_GET_SIZE(work);
    while (end - start > 3) {
        Py_ssize_t size = end - start - 1 < BLOCK ? end - start - 1 : BLOCK;
        if (has_dot_line((const octet *)start, size)) {
            const char *last = start + size;
            for (const char *at = start; at < last && (at = memchr(at, '\n', last - at)) != NULL; at++) {
                if (end - at > 3 && at[1] == '.' && at[2] == '\r' && at[3] == '\n' &&
                    at > PyBytes_AS_STRING(work) && at[-1] == '\r') {
                    return PyLong_FromSsize_t(at - 1 - PyBytes_AS_STRING(work));
                }
            }
        }
        start += size;
    }
    return PyLong_FromLong(-1);
}

static PyObject *is_lawful(PyObject *module, PyObject *segment)
{
    if (!is_bytes(segment)) {
        return NULL;
    }
    const octet *octets = (const octet *)PyBytes_AS_STRING(segment);
    Py_ssize_t left = PyBytes_GET_SIZE(segment) - 1;
    if (left < 0) {
        Py_RETURN_TRUE;
    }
    if (octets[0] == '\n' || octets[left] == '\r' || octets[left] == 0) {
        Py_RETURN_FALSE;
    }
    while (left > 0) {
        Py_ssize_t size = left < BLOCK ? left : BLOCK;
        if (has_wrong(octets, size)) {
            Py_RETURN_FALSE;
        }
        octets += size;
        left -= size;
    }
    Py_RETURN_TRUE;
}

/* What each octet may be in: PLAIN, an atom with its dots, a name with its dots. */
enum { PLAIN = 1, ATOM = 2, NAME = 4 };
static octet kinds[256];

static void learn_kinds(void)
{
    for (int at = 0x20; at < 0x7f; at++) {
        int alphanumeric = (at >= '0' && at <= '9') || (at >= 'A' && at <= 'Z') || (at >= 'a' && at <= 'z');
        kinds[at] = (octet)((at != '"' && at != '\\' ? PLAIN : 0) |
                            (alphanumeric || strchr("!#$%&'*+-./=?^_`{|}~", at) != NULL ? ATOM : 0) |
                            (alphanumeric || at == '-' || at == '_' ? NAME : 0));
    }
}

/* 1: `said` is text of ASCII only, or octets, and the other two tell where; 0: it is other text; -1: it is neither, and that is raised. */
static int octets_of(PyObject *said, const octet **octets, Py_ssize_t *size)
{
    if (PyUnicode_Check(said)) {
        if (!PyUnicode_IS_ASCII(said)) { /* members of enumerations of strings are not compact */
            return 0;
        }
        *octets = PyUnicode_1BYTE_DATA(said);
        *size = PyUnicode_GET_LENGTH(said);
    } else if (is_bytes(said)) {
        *octets = (const octet *)PyBytes_AS_STRING(said);
        *size = PyBytes_GET_SIZE(said);
    } else {
        return -1;
    }
    return 1;
}

static PyObject *is_plain(PyObject *module, PyObject *said)
{
    const octet *octets;
    Py_ssize_t size;
    int found = octets_of(said, &octets, &size);
    if (found < 0) {
        return NULL;
    }
    if (!found) {
        Py_RETURN_FALSE;
    }
    octet all = PLAIN;
    for (Py_ssize_t at = 0; at < size; at++) {
        all &= kinds[octets[at]];
    }
    return PyBool_FromLong(all);
}

static PyObject *plain_path(PyObject *module, PyObject *argument)
{
    if (!is_bytes(argument)) {
        return NULL;
    }
    const octet *start = (const octet *)PyBytes_AS_STRING(argument);
    const octet *end = start + PyBytes_GET_SIZE(argument), *at = start + 1;
    if (start == end || *start != '<') {
        Py_RETURN_NONE;
    }
    while (at < end && (kinds[*at] & ATOM)) {
        at++;
    }
    if (at == end || *at != '@' || at == start + 1) {
        Py_RETURN_NONE;
    }
    do { /* a name is labels with a dot between any two */
        const octet *label = ++at;
        while (at < end && (kinds[*at] & NAME)) {
            at++;
        }
        if (at == label) {
            Py_RETURN_NONE;
        }
    } while (at < end && *at == '.');
    if (at == end || *at != '>' || (at + 1 < end && at[1] != ' ')) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize((const char *)start + 1, at - start - 1);
}

static PyObject *line_end(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(given[0]) || !PyLong_Check(given[1])) {
        PyErr_SetString(PyExc_TypeError, "bytes and a place expected");
        return NULL;
    }
    Py_ssize_t from = PyLong_AsSsize_t(given[1]), size = PyBytes_GET_SIZE(given[0]);
    if (from < 0 || from > size) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "a place outside");
        }
        return NULL;
    }
    const char *start = PyBytes_AS_STRING(given[0]), *found = memchr(start + from, '\n', size - from);
    return PyLong_FromSsize_t(found != NULL ? found - start : -1);
}

/* Whether `octets` are `word`, which is in lower case, in any case. */
static int is_word(const octet *octets, const octet *word, Py_ssize_t size)
{
    for (Py_ssize_t at = 0; at < size; at++) {
        octet lower = octets[at] >= 'A' && octets[at] <= 'Z' ? octets[at] | 0x20 : octets[at];
        if (lower != word[at]) {
            return 0;
        }
    }
    return 1;
}

static PyObject *count_traces(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    static const octet received[] = "received:";
    const Py_ssize_t received_size = sizeof received - 1;
    if (count != 2 || !PyBytes_Check(given[0]) || !PyBytes_Check(given[1]) || !PyBytes_GET_SIZE(given[1])) {
        PyErr_SetString(PyExc_TypeError, "a message's octets and a mark expected");
        return NULL;
    }
    const octet *start = (const octet *)PyBytes_AS_STRING(given[0]), *line = start;
    const octet *end = start + PyBytes_GET_SIZE(given[0]);
    long long total = 0, own = 0;
    while (!(end - line > 1 && line[0] == '\r' && line[1] == '\n')) {
        if (end - line >= received_size && is_word(line, received, received_size)) {
            total++;
        }
        const octet *next = line; /* a line ends with CRLF; an LF alone is part of it */
        do {
            next = next < end ? memchr(next, '\n', end - next) : NULL;
            if (next == NULL) {
                return PyLong_FromLong(-1);
            }
            next++;
        } while (next - line < 2 || next[-2] != '\r');
        line = next;
    }
    if (total) {
        const octet *ours = (const octet *)PyBytes_AS_STRING(given[1]);
        const Py_ssize_t size = PyBytes_GET_SIZE(given[1]);
        for (const octet *at = start; line - at >= size;) {
            if (is_word(at, ours, size)) {
                own++;
                at += size;
            } else {
                at++;
            }
        }
    }
    return PyLong_FromLongLong((total << 16) | (own < 0xffff ? own : 0xffff));
}

#define MOST_SAID 1024
#define MOST_LINE 4096

static PyObject *fill(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (count != 2 || !PyTuple_Check(given[0]) || !PyTuple_Check(given[1]) ||
        PyTuple_GET_SIZE(given[0]) != PyTuple_GET_SIZE(given[1]) + 1) {
        PyErr_SetString(PyExc_TypeError, "a tuple of pieces, and one of the values between them, expected");
        return NULL;
    }
    char line[MOST_LINE];
    Py_ssize_t used = 0, said = 0, values = PyTuple_GET_SIZE(given[1]);
    for (Py_ssize_t at = 0;; at++) {
        PyObject *piece = PyTuple_GET_ITEM(given[0], at);
        if (!is_bytes(piece)) {
            return NULL;
        }
        Py_ssize_t size = PyBytes_GET_SIZE(piece);
        if (size > MOST_LINE - used) {
            Py_RETURN_NONE;
        }
        memcpy(line + used, PyBytes_AS_STRING(piece), size);
        used += size;
        if (at == values) {
            return PyBytes_FromStringAndSize(line, used);
        }
        PyObject *value = PyTuple_GET_ITEM(given[1], at);
        if (PyLong_Check(value)) {
            char digits[20];
            int overflow, first = sizeof digits;
            long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
            if (number == -1 && PyErr_Occurred()) {
                return NULL;
            }
            if (overflow || number < 0) {
                Py_RETURN_NONE;
            }
            do {
                digits[--first] = (char)('0' + number % 10);
                number /= 10;
            } while (number);
            size = (Py_ssize_t)sizeof digits - first;
            if (size > MOST_LINE - used) {
                Py_RETURN_NONE;
            }
            memcpy(line + used, digits + first, size);
            used += size;
            continue;
        }
        const octet *octets;
        int found = octets_of(value, &octets, &size);
        if (found < 0) {
            return NULL;
        }
        if (!found) {
            Py_RETURN_NONE;
        }
        said += size;
        if (said > MOST_SAID || size > MOST_LINE - used) {
            Py_RETURN_NONE;
        }
        octet all = PLAIN;
        for (Py_ssize_t place = 0; place < size; place++) {
            all &= kinds[octets[place]];
            line[used + place] = (char)octets[place];
        }
        if (!all) {
            Py_RETURN_NONE;
        }
        used += size;
    }
}

static PyMethodDef methods[] = {
    {"count_traces", (PyCFunction)(void (*)(void))count_traces, METH_FASTCALL, NULL},
    {"fill", (PyCFunction)(void (*)(void))fill, METH_FASTCALL, NULL},
    {"find_end", find_end, METH_O, NULL},
    {"is_lawful", is_lawful, METH_O, NULL},
    {"is_plain", is_plain, METH_O, NULL},
    {"line_end", (PyCFunction)(void (*)(void))line_end, METH_FASTCALL, NULL},
    {"plain_path", plain_path, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_scan", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__scan(void)
{
    learn_kinds();
    return PyModule_Create(&definition);
}
