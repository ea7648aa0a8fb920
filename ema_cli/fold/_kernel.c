/* The fold, compiled: weighted sums, sums of squares and rounding, without the intermediate arrays that numpy needs.

   numpy computes the same bits, more slowly, where this module was not built; see kernel.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#define INTERFACE 3 /* raised when a function takes or gives something else; kernel.py has the same number */

#define SIGN ((uint64_t)1 << 63)
#define ROW 1024   /* elements that are summed at a time; a power of two times COLUMNS */
#define COLUMNS 16 /* sums that are kept side by side */
#define STRIP ROW  /* elements of a sum that stay in the first-level cache */
#define PART 256   /* elements of several sums and of decoded checkpoints that do */
#define AT_ONCE 16 /* checkpoints that are decoded together */
#define LARGEST 8  /* bytes of an element */
#define PARTS 64   /* a sum of float64 has at most 41 parts of 53 bits that do not overlap */
#define MIDPOINT_TILE 64
#define MOST 64    /* checkpoints in one call */

enum { F64, F32, BF16, F16, F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, TYPES };
enum { LOADS = F8_E4M3 + 1 }; /* the types of 8 bits are loaded from a table */

#include "_crc32.h"

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
    void (*add_four)(double *, const double *const *, Py_ssize_t, const double *, int);
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
static const char *lane;

static int has_lane(const char *name)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (strcmp(name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2");
#endif
    return strcmp(name, "baseline") == 0;
}

/* Lanes from the fastest to the one that every processor has; NEON belongs to the baseline of its processors. */
static const struct {
    const char *name;
    const struct loops *loops;
} lanes[] = {
#if defined(__x86_64__) && defined(__GNUC__)
    {"avx512", &loops_avx512},
    {"avx2", &loops_avx2},
#endif
    {"baseline", &loops_baseline},
};
enum { LANES = sizeof lanes / sizeof *lanes };

static int use_lane(const char *name)
{
    for (int n = 0; n < LANES; n++)
        if ((name == NULL || strcmp(name, lanes[n].name) == 0) && has_lane(lanes[n].name)) {
            loops = lanes[n].loops;
            lane = lanes[n].name;
#ifdef HAS_READS
            choose_crc(lane);
#endif
            return 0;
        }
    return -1;
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

static int check_type(int64_t code)
{
    return code >= 0 && code < TYPES ? 0 : refuse("there is no type of this number");
}

static int loader_of(int code)
{
    return code < F8_E4M3 ? code : F8_E4M3;
}

/* The same elements of several checkpoints, to be added together. */
struct blocks {
    int count;
    const unsigned char *raws[MOST];
    int codes[MOST];
    const double *weights[MOST]; /* of each average */
};

/* The sums of a block. */
struct sums {
    double *values;
    Py_ssize_t stride, count;
    int averages;
    char *started;
};

/* Checkpoints of one call of fold. */
struct inputs {
    int count;
    Py_buffer buffers[MOST];
    int codes[MOST];
};

static int describe(struct sums *sums, Py_buffer *values, Py_buffer *started, Py_ssize_t count)
{
    sums->values = values->buf;
    sums->started = started->buf;
    sums->averages = (int)started->len;
    sums->stride = started->len ? values->len / 8 / started->len : 0;
    sums->count = count;
    return count < 0 ? refuse("there are fewer than no elements") : 0;
}

static int check_sums(const struct sums *sums, Py_ssize_t needed)
{
    return needed > sums->stride ? refuse("the sums are too small") : 0;
}

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
        if (PyErr_Occurred() || check_type(code) < 0)
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

/* Add some elements, from begin on, of all checkpoints to the sum of average k. */
static void add_strip(double *sum, int is_first, const struct blocks *blocks, int k, Py_ssize_t begin, Py_ssize_t count)
{
    for (int g = 0; g < blocks->count; g++) {
        int code = blocks->codes[g];
        if (blocks->weights[g][k] == 0)
            continue;
        loops->add[loader_of(code)](sum, blocks->raws[g] + begin * sizes[code], count, blocks->weights[g][k], is_first,
                                    tables[code]);
        is_first = 0;
    }
}

/* Add checkpoints to the sum of average k, four at a time, given their numbers. */
static void add_decoded(double *sum, int is_first, const struct blocks *blocks, double (*numbers)[PART], int k,
                        Py_ssize_t count)
{
    const double *waiting_numbers[4];
    double weights[4];
    int waiting = 0;
    for (int g = 0; g < blocks->count; g++) {
        if (blocks->weights[g][k] == 0)
            continue;
        waiting_numbers[waiting] = numbers[g];
        weights[waiting++] = blocks->weights[g][k];
        if (waiting == 4) {
            loops->add_four(sum, waiting_numbers, count, weights, is_first);
            is_first = waiting = 0;
        }
    }
    for (int n = 0; n < waiting; n++) {
        loops->add[F64](sum, (const unsigned char *)waiting_numbers[n], count, weights[n], is_first, NULL);
        is_first = 0;
    }
}

/* Add a strip to the sums of several averages, which are a stride apart: numbers are decoded once for all of them. */
static void add_to_several(double *values, const struct sums *sums, const struct blocks *blocks, Py_ssize_t begin,
                           Py_ssize_t count)
{
    double numbers[AT_ONCE][PART];
    for (Py_ssize_t done = 0; done < count; done += PART) {
        Py_ssize_t length = count - done < PART ? count - done : PART;
        for (int g = 0; g < blocks->count; g++) {
            int code = blocks->codes[g];
            loops->add[loader_of(code)](numbers[g], blocks->raws[g] + (begin + done) * sizes[code], length, 1, 1,
                                        tables[code]);
        }
        for (int k = 0; k < sums->averages; k++)
            add_decoded(values + k * sums->stride + done, !sums->started[k], blocks, numbers, k, length);
    }
}

/* Add a strip to the sums of all averages, which are a stride apart. */
static void add_to_all(double *values, const struct sums *sums, const struct blocks *blocks, Py_ssize_t begin,
                       Py_ssize_t count)
{
    if (sums->averages > 1 && blocks->count <= AT_ONCE)
        add_to_several(values, sums, blocks, begin, count);
    else
        for (int k = 0; k < sums->averages; k++)
            add_strip(values + k * sums->stride, !sums->started[k], blocks, k, begin, count);
}

static void mark_started(struct sums *sums, const struct blocks *blocks)
{
    for (int k = 0; k < sums->averages; k++)
        for (int g = 0; g < blocks->count; g++)
            if (blocks->weights[g][k] != 0)
                sums->started[k] = 1;
}

static void add_all(struct sums *sums, const struct blocks *blocks)
{
    for (Py_ssize_t begin = 0; begin < sums->count; begin += STRIP) {
        Py_ssize_t count = sums->count - begin < STRIP ? sums->count - begin : STRIP;
        add_to_all(sums->values + begin, sums, blocks, begin, count);
    }
    mark_started(sums, blocks);
}

static PyObject *fold(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer values, weights, started;
    PyObject *raws, *codes;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "w*nO!O!y*w*:fold", &values, &count, &PyTuple_Type, &raws, &PyTuple_Type, &codes,
                          &weights, &started))
        return NULL;
    struct inputs inputs = {0};
    struct sums sums;
    int failed = describe(&sums, &values, &started, count) || check_sums(&sums, count) || take(&inputs, raws, codes, count);
    if (!failed && weights.len != sums.averages * inputs.count * 8)
        failed = refuse("there must be a weight for each input and average");
    if (!failed) {
        struct blocks blocks = {.count = inputs.count};
        for (int g = 0; g < inputs.count; g++) {
            blocks.raws[g] = inputs.buffers[g].buf;
            blocks.codes[g] = inputs.codes[g];
            blocks.weights[g] = (const double *)weights.buf + g * sums.averages;
        }
        Py_BEGIN_ALLOW_THREADS
        add_all(&sums, &blocks);
        Py_END_ALLOW_THREADS
    }
    release(&inputs);
    PyBuffer_Release(&values);
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

/* A sum of float64 without error, as numbers that do not overlap: Shewchuk 1997, "Adaptive precision floating-point
   arithmetic". Python's math.fsum does the same. */
struct exact {
    int count;
    double parts[PARTS];
};

/* Add x to y; return the sum, and in rest what was rounded off. The absolute value of x must not be the smaller. */
static double add_two(double x, double y, double *rest)
{
    double sum = x + y;
    *rest = y - (sum - x);
    return sum;
}

/* Add a number; return 0 if that leaves the range of float64. */
static int add_exactly(struct exact *sum, double x)
{
    int kept = 0;
    for (int j = 0; j < sum->count; j++) {
        double y = sum->parts[j], rest;
        x = fabs(x) < fabs(y) ? add_two(y, x, &rest) : add_two(x, y, &rest);
        if (rest != 0)
            sum->parts[kept++] = rest;
    }
    sum->count = kept;
    if (x != 0)
        sum->parts[sum->count++] = x;
    return isfinite(x);
}

/* Round once, to nearest, ties to even. */
static double round_exact(const struct exact *sum)
{
    int n = sum->count;
    double total = n > 0 ? sum->parts[--n] : 0, rest = 0;
    while (n > 0 && rest == 0)
        total = add_two(total, sum->parts[--n], &rest);
    if (n > 0 && ((rest < 0 && sum->parts[n - 1] < 0) || (rest > 0 && sum->parts[n - 1] > 0))) {
        double next = total + 2 * rest; /* the rest is half of the last place, and there is more in its direction */
        if (next - total == 2 * rest)
            total = next;
    }
    return total;
}

/* The correctly rounded sum and the remainder; of numbers that are too large, the sum and no remainder. */
static void sum_exactly(const double *values, Py_ssize_t count, double *out)
{
    struct exact sum = {0};
    double rough = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        rough += values[i];
    int is_finite = isfinite(rough);
    for (Py_ssize_t i = 0; i < count && is_finite; i++)
        is_finite = add_exactly(&sum, values[i]);
    out[0] = is_finite ? round_exact(&sum) : rough;
    out[1] = is_finite && add_exactly(&sum, -out[0]) ? round_exact(&sum) : 0;
}

static PyObject *exact_sums(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer values, sums;
    Py_ssize_t width, step;
    if (!PyArg_ParseTuple(args, "y*nnw*:exact_sums", &values, &width, &step, &sums))
        return NULL;
    Py_ssize_t height = width > 0 ? values.len / 8 / width : 0;
    int failed = width < 1 || step < 1 || values.len != height * width * 8 ||
                 sums.len != height * ((width + step - 1) / step) * 16;
    if (failed)
        refuse("the buffers do not fit");
    else {
        const double *row = values.buf;
        double *out = sums.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t r = 0; r < height; r++, row += width)
            for (Py_ssize_t first = 0; first < width; first += step, out += 2)
                sum_exactly(row + first, width - first < step ? width - first : step, out);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&sums);
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
    if (!PyArg_ParseTuple(args, "y*iw*d:round_to", &values, &code, &out, &limit))
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

#ifdef HAS_READS
/* Where the same elements of a checkpoint are, and which of them to pick. */
struct place {
    int64_t descriptor, offset, code;
};

static int read_all(int descriptor, unsigned char *raw, Py_ssize_t length, int64_t offset)
{
    while (length > 0) {
        ssize_t done = pread(descriptor, raw, (size_t)length, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        raw += done;
        offset += done;
        length -= done;
    }
    return 0;
}

/* Elements to look at on the way: the numbers of those that are picked, and a row for each checkpoint. */
struct picks {
    const int64_t *numbers;
    Py_ssize_t count;
    char *rows;
    Py_ssize_t stride; /* in bytes */
};

/* Fill the row of a checkpoint with those of its elements that are in a tile. */
static void pick(const struct picks *picks, const unsigned char *raw, int code, int row, Py_ssize_t begin,
                 Py_ssize_t count)
{
    double *out = (double *)(picks->rows + row * picks->stride);
    for (Py_ssize_t j = 0; j < picks->count; j++)
        if (picks->numbers[j] >= begin && picks->numbers[j] < begin + count)
            loops->add[loader_of(code)](out + j, raw + (picks->numbers[j] - begin) * sizes[code], 1, 1, 1, tables[code]);
}

/* What is computed of a block when the last checkpoint was added. */
struct results {
    double *squares; /* (averages, 3, rows); NULL to compute nothing */
    Py_ssize_t rows;
    unsigned char *rounded; /* (averages, count) of the type code */
    int code;
    double limit;
    char *fits; /* of each average, whether all numbers are below the limit */
};

/* Measure and round some elements of average k, from begin on, which the last checkpoint has in raw. */
static void finish(const struct results *results, const struct sums *sums, int k, const double *values,
                   Py_ssize_t begin, Py_ssize_t count, const unsigned char *raw, int code)
{
    double *squares = results->squares + 3 * k * results->rows + begin / ROW;
    unsigned char *out = results->rounded + (k * sums->count + begin) * sizes[results->code];
    loops->squares[loader_of(code)](values, raw, count, squares, squares + results->rows, squares + 2 * results->rows,
                                    tables[code]);
    results->fits[k] &= (char)round_numbers(values, count, results->code, out, results->limit);
}

/* The checkpoints of one call: where a block is in each, and their weights. */
struct places {
    const struct place *all;
    int count;
    const double *weights;
    uint32_t *crcs;
    struct picks picks;
};

/* Read a tile, from begin on, of each checkpoint; return how many could be read. */
static int read_tile(const struct places *places, const struct blocks *tile, Py_ssize_t begin, Py_ssize_t count)
{
    for (int g = 0; g < places->count; g++) {
        unsigned char *raw = (unsigned char *)tile->raws[g];
        Py_ssize_t size = sizes[tile->codes[g]];
        if (read_all((int)places->all[g].descriptor, raw, count * size, places->all[g].offset + begin * size) < 0)
            return g;
        places->crcs[g] = crc_of(places->crcs[g], raw, count * size);
        pick(&places->picks, raw, tile->codes[g], g, begin, count);
    }
    return places->count;
}

/* Add a tile, strip by strip: the sums stay in the first-level cache until they are rounded. They are kept only if
   other calls add to them. */
static void add_tile(struct sums *sums, const struct blocks *tile, Py_ssize_t first, Py_ssize_t count,
                     const struct results *results, int is_whole)
{
    int last = tile->count - 1;
    for (Py_ssize_t begin = 0; begin < count; begin += STRIP) {
        Py_ssize_t length = count - begin < STRIP ? count - begin : STRIP;
        double *values = is_whole ? sums->values : sums->values + first + begin;
        add_to_all(values, sums, tile, begin, length);
        for (int k = 0; k < sums->averages && results->squares != NULL; k++)
            finish(results, sums, k, values + k * sums->stride, first + begin, length,
                   tile->raws[last] + begin * sizes[tile->codes[last]], tile->codes[last]);
    }
}

static int average_block(struct sums *sums, const struct places *places, const Py_buffer *memory,
                         const struct results *results, int is_whole)
{
    struct blocks tile = {.count = places->count};
    Py_ssize_t slot = memory->len / places->count, length = slot;
    int done = places->count;
    for (int g = 0; g < places->count; g++) {
        tile.raws[g] = (unsigned char *)memory->buf + g * slot;
        tile.codes[g] = (int)places->all[g].code;
        tile.weights[g] = places->weights + g * sums->averages;
        if (slot / sizes[tile.codes[g]] < length)
            length = slot / sizes[tile.codes[g]];
    }
    length -= length % ROW;
    memset(places->crcs, 0, (size_t)places->count * sizeof *places->crcs);
    for (Py_ssize_t begin = 0; begin < sums->count && done == places->count; begin += length) {
        Py_ssize_t count = sums->count - begin < length ? sums->count - begin : length;
        done = read_tile(places, &tile, begin, count);
        if (done == places->count)
            add_tile(sums, &tile, begin, count, results, is_whole);
    }
    mark_started(sums, &tile);
    return done;
}

static int check_places(const Py_buffer *places)
{
    const struct place *place = places->buf;
    for (Py_ssize_t g = 0; g < places->len / (Py_ssize_t)sizeof *place; g++)
        if (check_type(place[g].code) < 0)
            return -1;
    return 0;
}

/* Describe the picks: rows is None, or a strided array of a row for each of count checkpoints. */
static int find_picks(struct picks *picks, const Py_buffer *numbers, const Py_buffer *rows, Py_ssize_t count,
                      Py_ssize_t elements)
{
    picks->numbers = numbers->buf;
    picks->count = numbers->len / 8;
    picks->rows = rows->buf;
    picks->stride = picks->count ? rows->strides[0] : 0;
    if (picks->count && (rows->ndim != 2 || rows->shape[0] < count || rows->shape[1] != picks->count ||
                         rows->itemsize != 8 || rows->strides[1] != 8))
        return refuse("the rows do not fit the picks");
    for (Py_ssize_t j = 0; j < picks->count; j++)
        if (picks->numbers[j] < 0 || picks->numbers[j] >= elements)
            return refuse("a pick is outside the block");
    return 0;
}

static int check_results(struct results *results, const Py_buffer *squares, const Py_buffer *rounded,
                         const Py_buffer *fits, const struct sums *sums)
{
    results->squares = squares->len ? squares->buf : NULL;
    results->rows = (sums->count + ROW - 1) / ROW;
    results->rounded = rounded->buf;
    results->fits = fits->buf;
    if (!squares->len)
        return 0;
    if (check_type(results->code) < 0)
        return -1;
    if (squares->len != 3 * sums->averages * results->rows * 8 || fits->len != sums->averages ||
        rounded->len != sums->averages * sums->count * sizes[results->code])
        return refuse("the results do not fit the sums");
    memset(results->fits, 1, (size_t)sums->averages);
    return 0;
}

static PyObject *average(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer values, given, weights, started, memory, crcs, numbers, squares, rounded, fits, rows = {0};
    Py_ssize_t elements;
    PyObject *row_array;
    struct results results;
    if (!PyArg_ParseTuple(args, "w*ny*y*w*w*w*y*Ow*w*w*id:average", &values, &elements, &given, &weights, &started,
                          &memory, &crcs, &numbers, &row_array, &squares, &rounded, &fits, &results.code,
                          &results.limit))
        return NULL;
    struct sums sums;
    Py_ssize_t count = given.len / (Py_ssize_t)sizeof(struct place);
    struct places places = {.all = given.buf, .count = (int)count, .weights = weights.buf, .crcs = crcs.buf};
    int done = 0, failed = describe(&sums, &values, &started, elements) || check_places(&given);
    int is_whole = squares.len > 0 && memchr(started.buf, 1, (size_t)started.len) == NULL;
    if (!failed)
        failed = check_sums(&sums, is_whole && elements > STRIP ? STRIP : elements);
    if (!failed && (weights.len != count * sums.averages * 8 || crcs.len != count * 4))
        failed = refuse("there must be a weight for each checkpoint and average, and a checksum for each checkpoint");
    if (!failed && (count < 1 || count > MOST || memory.len / count < ROW * LARGEST))
        failed = refuse("there must be from 1 to 64 checkpoints, and memory for a row of each");
    if (!failed && numbers.len)
        failed = PyObject_GetBuffer(row_array, &rows, PyBUF_STRIDES | PyBUF_WRITABLE);
    failed = failed || find_picks(&places.picks, &numbers, &rows, count, elements) ||
             check_results(&results, &squares, &rounded, &fits, &sums);
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        done = average_block(&sums, &places, &memory, &results, is_whole);
        Py_END_ALLOW_THREADS
    }
    if (rows.obj != NULL)
        PyBuffer_Release(&rows);
    Py_buffer *all[] = {&values, &given, &weights, &started, &memory, &crcs, &numbers, &squares, &rounded, &fits};
    for (size_t n = 0; n < sizeof all / sizeof *all; n++)
        PyBuffer_Release(all[n]);
    return failed ? NULL : PyLong_FromLong(done);
}
#endif

static PyObject *lane_name(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
#if defined(__aarch64__)
    return PyUnicode_FromString("neon");
#else
    return PyUnicode_FromString(lane);
#endif
}

static PyObject *use(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    if (!PyArg_ParseTuple(args, "s:use", &name))
        return NULL;
    if (use_lane(name) < 0 && refuse("this processor or build has no such lane"))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, "Add weights times numbers to sums."},
    {"squares", squares, METH_VARARGS, "Sum the squares of an average, of its difference to a checkpoint, and of that."},
    {"exact_sums", exact_sums, METH_VARARGS, "Sum numbers, rounded once, with the remainders."},
    {"round_to", round_all, METH_VARARGS, "Round float64; return whether the absolute values are below a limit."},
#ifdef HAS_READS
    {"average", average, METH_VARARGS, "Read a block of checkpoints, add it up, measure it and round it."},
#endif
    {"lane", lane_name, METH_NOARGS, "Return the name of the instruction set."},
    {"use", use, METH_VARARGS, "Use the loops of another instruction set."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    int has_reads = 0;
    use_lane(NULL);
    set_up_types();
#ifdef HAS_READS
    set_up_crc();
    has_reads = crc_of != NULL;
#endif
    if (PyModule_AddIntConstant(module, "HAS_READS", has_reads) < 0)
        return -1;
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
