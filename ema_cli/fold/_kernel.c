/* The fold, compiled: weighted sums, sums of squares and rounding, without the intermediate arrays that numpy needs.

   numpy computes the same bits, more slowly, where this module was not built; see kernel.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#define INTERFACE 1 /* raised when a function takes or gives something else; kernel.py has the same number */

#define SIGN ((uint64_t)1 << 63)
#define ROW 1024   /* elements that are summed at a time; a power of two times COLUMNS */
#define COLUMNS 16 /* sums that are kept side by side */
#define TILE 2048  /* elements of a sum that stay in the first-level cache */
#define MIDPOINT_TILE 64
#define MOST 64    /* checkpoints in one call */

enum { F64, F32, BF16, F16, F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, TYPES };
enum { LOADS = F8_E4M3 + 1 }; /* the types of 8 bits are loaded from a table */

/* A floating-point type of 8 or 16 bits. */
struct narrow {
    int bits, fraction_bits, bias;
    uint64_t largest, beyond, nan; /* codes: of the largest number, of what is larger, and of NaN */
    int has_negative_zero;
    double least_normal; /* the least number with all places */
    double magic;        /* its last place is the smallest number above zero */
};

static struct narrow narrow_types[TYPES] = {
    [BF16] = {16, 7, 127, 0x7f7f, 0x7f80, 0x7fc0, 1},
    [F16] = {16, 10, 15, 0x7bff, 0x7c00, 0x7e00, 1},
    [F8_E4M3] = {8, 3, 7, 0x7e, 0x7f, 0x7f, 1},
    [F8_E5M2] = {8, 2, 15, 0x7b, 0x7c, 0x7e, 1},
    [F8_E4M3FNUZ] = {8, 3, 8, 0x7f, 0x80, 0x80, 0},
    [F8_E5M2FNUZ] = {8, 2, 16, 0x7f, 0x80, 0x80, 0},
};

static const int sizes[TYPES] = {8, 4, 2, 2, 1, 1, 1, 1};
static double tables[TYPES][256];

typedef void (*add_loop)(double *, const unsigned char *, Py_ssize_t, double, int, const double *);
typedef void (*squares_loop)(const double *, const unsigned char *, Py_ssize_t, double *, double *, double *,
                             const double *);
struct loops {
    add_loop add[LOADS];
    squares_loop squares[LOADS];
    int (*are_below)(const double *, Py_ssize_t, double);
    void (*round_f32)(const double *, Py_ssize_t, float *);
    void (*round_bf16)(const double *, Py_ssize_t, uint16_t *, const struct narrow *);
    void (*round_16)(const double *, Py_ssize_t, uint16_t *, const struct narrow *);
    void (*round_8)(const double *, Py_ssize_t, uint8_t *, const struct narrow *);
};

INLINE double halve(double *columns)
{
    for (int width = COLUMNS / 2; width > 0; width /= 2)
        for (int c = 0; c < width; c++)
            columns[c] += columns[c + width];
    return columns[0];
}

#define NAME(name) name##_baseline
#define TARGET
#include "_kernel_loops.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NAME(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#include "_kernel_loops.h"

#define NAME(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#include "_kernel_loops.h"
#endif

static const struct loops *loops = &loops_baseline;
#if defined(__aarch64__)
static const char *lane = "neon";
#else
static const char *lane = "baseline";
#endif

static void choose_loops(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        loops = &loops_avx512;
        lane = "avx512";
    } else if (__builtin_cpu_supports("avx2")) {
        loops = &loops_avx2;
        lane = "avx2";
    }
#endif
}

static double number_of(const struct narrow *type, int code)
{
    int fraction = code & ((1 << type->fraction_bits) - 1), places = (code & 0x7f) >> type->fraction_bits;
    if (code == (int)type->nan || ((uint64_t)(code & 0x7f) > type->largest && (uint64_t)(code & 0x7f) != type->beyond))
        return NAN;
    double sign = code & 0x80 ? -1 : 1;
    if ((uint64_t)(code & 0x7f) > type->largest)
        return type->beyond == type->nan ? NAN : sign * INFINITY;
    double size = places ? 1 + ldexp(fraction, -type->fraction_bits) : ldexp(fraction, 1 - type->fraction_bits);
    return sign * ldexp(size, places - type->bias);
}

static void set_up_types(void)
{
    for (int code = BF16; code < TYPES; code++) {
        struct narrow *type = &narrow_types[code];
        type->least_normal = ldexp(1, 1 - type->bias);
        type->magic = ldexp(1, 1 - type->bias - type->fraction_bits + 52);
        if (type->bits == 8)
            for (int c = 0; c < 256; c++)
                tables[code][c] = number_of(type, c);
    }
}

static int refuse(const char *message)
{
    PyErr_SetString(PyExc_ValueError, message);
    return -1;
}

static int check_type(int code)
{
    return code >= 0 && code < TYPES ? 0 : refuse("there is no type of this number");
}

static int loader_of(int code)
{
    return code < F8_E4M3 ? code : F8_E4M3;
}

/* Checkpoints of one call of fold. */
struct inputs {
    int count;
    Py_buffer buffers[MOST];
    int codes[MOST];
};

static void release(struct inputs *inputs)
{
    while (inputs->count > 0)
        PyBuffer_Release(&inputs->buffers[--inputs->count]);
}

static int take(struct inputs *inputs, PyObject *raws, PyObject *codes, Py_ssize_t count)
{
    Py_ssize_t given = PyTuple_Size(raws);
    if (given < 0 || PyTuple_Size(codes) != given || given > MOST)
        return PyErr_Occurred() ? -1 : refuse("as many types as inputs are needed, at most 64");
    for (Py_ssize_t g = 0; g < given; g++) {
        long code = PyLong_AsLong(PyTuple_GetItem(codes, g));
        if (PyErr_Occurred() || check_type((int)code) < 0)
            return -1;
        if (PyObject_GetBuffer(PyTuple_GetItem(raws, g), &inputs->buffers[g], PyBUF_SIMPLE) < 0)
            return -1;
        inputs->codes[g] = (int)code;
        inputs->count++;
        if (inputs->buffers[g].len != count * sizes[code])
            return refuse("an input has another length than the sums");
    }
    return 0;
}

static void add_all(const struct inputs *inputs, double *sums, Py_ssize_t stride, Py_ssize_t count,
                    const double *weights, int averages, char *started)
{
    for (Py_ssize_t begin = 0; begin < count; begin += TILE) {
        Py_ssize_t length = count - begin < TILE ? count - begin : TILE;
        for (int k = 0; k < averages; k++) {
            int is_first = !started[k];
            for (int g = 0; g < inputs->count; g++) {
                double weight = weights[g * averages + k];
                if (weight == 0)
                    continue;
                int code = inputs->codes[g];
                loops->add[loader_of(code)](sums + k * stride + begin,
                                            (const unsigned char *)inputs->buffers[g].buf + begin * sizes[code], length,
                                            weight, is_first, tables[code]);
                is_first = 0;
            }
        }
    }
    for (int k = 0; k < averages; k++)
        for (int g = 0; g < inputs->count; g++)
            if (weights[g * averages + k] != 0)
                started[k] = 1;
}

static PyObject *fold(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer sums, weights, started;
    PyObject *raws, *codes;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "w*nO!O!y*w*:fold", &sums, &count, &PyTuple_Type, &raws, &PyTuple_Type, &codes,
                          &weights, &started))
        return NULL;
    struct inputs inputs = {0};
    Py_ssize_t averages = started.len, stride = averages ? sums.len / 8 / averages : 0;
    int failed = take(&inputs, raws, codes, count);
    if (!failed && (count < 0 || count > stride || weights.len != averages * inputs.count * 8))
        failed = refuse("sums and weights do not fit");
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        add_all(&inputs, sums.buf, stride, count, weights.buf, (int)averages, started.buf);
        Py_END_ALLOW_THREADS
    }
    release(&inputs);
    PyBuffer_Release(&sums);
    PyBuffer_Release(&weights);
    PyBuffer_Release(&started);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *squares(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer average, raw, rows;
    int code;
    if (!PyArg_ParseTuple(args, "y*y*iw*:squares", &average, &raw, &code, &rows))
        return NULL;
    Py_ssize_t count = average.len / 8, height = (count + ROW - 1) / ROW;
    int failed = check_type(code);
    if (!failed && (raw.len != count * sizes[code] || rows.len != 3 * height * 8))
        failed = refuse("the buffers do not fit");
    if (!failed) {
        double *sums = rows.buf;
        Py_BEGIN_ALLOW_THREADS
        loops->squares[loader_of(code)](average.buf, raw.buf, count, sums, sums + height, sums + 2 * height,
                                        tables[code]);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&average);
    PyBuffer_Release(&raw);
    PyBuffer_Release(&rows);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static int round_numbers(const double *values, Py_ssize_t count, int code, void *out, double limit)
{
    if (code == F64)
        memcpy(out, values, (size_t)count * 8);
    else if (code == F32)
        loops->round_f32(values, count, out);
    else if (code == BF16)
        loops->round_bf16(values, count, out, &narrow_types[code]);
    else if (code == F16)
        loops->round_16(values, count, out, &narrow_types[code]);
    else
        loops->round_8(values, count, out, &narrow_types[code]);
    return loops->are_below(values, count, limit);
}

static PyObject *round_all(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer values, out;
    int code, are_below = 0;
    double limit;
    if (!PyArg_ParseTuple(args, "y*iw*d:round", &values, &code, &out, &limit))
        return NULL;
    Py_ssize_t count = values.len / 8;
    int failed = check_type(code);
    if (!failed && out.len != count * sizes[code])
        failed = refuse("the buffers do not fit");
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        are_below = round_numbers(values.buf, count, code, out.buf, limit);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return failed ? NULL : PyBool_FromLong(are_below);
}

static PyObject *lane_name(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    return PyUnicode_FromString(lane);
}

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, "Add weights times numbers to sums."},
    {"squares", squares, METH_VARARGS, "Sum the squares of an average, of its difference to a checkpoint, and of that."},
    {"round", round_all, METH_VARARGS, "Round float64; return whether the absolute values are below a limit."},
    {"lane", lane_name, METH_NOARGS, "Return the name of the instruction set."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    choose_loops();
    set_up_types();
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_doc = "The compiled kernel of the fold.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&definition);
}
