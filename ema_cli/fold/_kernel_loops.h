/* The loops of the kernel, compiled once per instruction set: the file that includes this one defines NAME and TARGET.

   No loop uses fused operations, and none changes the order of sums, so every instruction set gives the same bits.
   Bytes of a checkpoint need not be aligned: they are loaded by memcpy, which compiles to one instruction. */

INLINE TARGET double NAME(load_f64)(const unsigned char *raw, Py_ssize_t i)
{
    double x;
    memcpy(&x, raw + 8 * i, 8);
    return x;
}

INLINE TARGET double NAME(load_f32)(const unsigned char *raw, Py_ssize_t i)
{
    float x;
    memcpy(&x, raw + 4 * i, 4);
    return x;
}

INLINE TARGET double NAME(load_bf16)(const unsigned char *raw, Py_ssize_t i)
{
    uint16_t stored;
    memcpy(&stored, raw + 2 * i, 2);
    uint32_t bits = (uint32_t)stored << 16; /* bfloat16 is the upper half of float32 */
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The exponent and the fraction of a float16, moved to where a float32 has them, are the number times 2^-112. */
INLINE TARGET double NAME(load_f16)(const unsigned char *raw, Py_ssize_t i)
{
    uint16_t stored;
    memcpy(&stored, raw + 2 * i, 2);
    uint32_t moved = (uint32_t)(stored & 0x7fff) << 13;
    float scaled;
    memcpy(&scaled, &moved, 4);
    scaled *= 0x1p112f; /* exact */
    uint32_t bits;
    memcpy(&bits, &scaled, 4);
    bits |= (stored & 0x7c00) == 0x7c00 ? 0x7f800000u : 0; /* infinity and NaN */
    bits |= (uint32_t)(stored & 0x8000) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* sum = weight * x, or sum += weight * x */
#define DEFINE_ADD(type, load)                                                                                         \
    TARGET static void NAME(add_##type)(double *restrict sum, const unsigned char *restrict raw, Py_ssize_t count,     \
                                        double weight, int is_first, const double *table)                              \
    {                                                                                                                  \
        (void)table;                                                                                                   \
        if (is_first)                                                                                                  \
            for (Py_ssize_t i = 0; i < count; i++)                                                                     \
                sum[i] = weight * load;                                                                                \
        else                                                                                                           \
            for (Py_ssize_t i = 0; i < count; i++)                                                                     \
                sum[i] += weight * load;                                                                               \
    }

/* Sums of squares of the average, its difference to the last checkpoint, and the last checkpoint, per row of 1024:
   element i is added to column i % 16, and the columns are added in halves. */
#define DEFINE_SQUARES(type, load)                                                                                     \
    TARGET static void NAME(squares_##type)(const double *restrict average, const unsigned char *restrict raw,         \
                                            Py_ssize_t count, double *restrict of_average,                             \
                                            double *restrict of_difference, double *restrict of_last,                  \
                                            const double *table)                                                       \
    {                                                                                                                  \
        (void)table;                                                                                                   \
        for (Py_ssize_t begin = 0, row = 0; begin < count; begin += ROW, row++) {                                      \
            double columns[3][COLUMNS] = {{0}};                                                                        \
            Py_ssize_t end = count - begin < ROW ? count : begin + ROW;                                                \
            Py_ssize_t whole = end - (end - begin) % COLUMNS;                                                          \
            for (Py_ssize_t j = begin; j < whole; j += COLUMNS)                                                        \
                for (int c = 0; c < COLUMNS; c++) {                                                                    \
                    Py_ssize_t i = j + c;                                                                              \
                    double last = load, difference = average[i] - last;                                                \
                    columns[0][c] += average[i] * average[i];                                                          \
                    columns[1][c] += difference * difference;                                                          \
                    columns[2][c] += last * last;                                                                      \
                }                                                                                                      \
            for (Py_ssize_t i = whole; i < end; i++) {                                                                 \
                double last = load, difference = average[i] - last;                                                    \
                columns[0][i - whole] += average[i] * average[i];                                                      \
                columns[1][i - whole] += difference * difference;                                                      \
                columns[2][i - whole] += last * last;                                                                  \
            }                                                                                                          \
            of_average[row] = halve(columns[0]);                                                                       \
            of_difference[row] = halve(columns[1]);                                                                    \
            of_last[row] = halve(columns[2]);                                                                          \
        }                                                                                                              \
    }

#define DEFINE_TYPE(type, load) DEFINE_ADD(type, load) DEFINE_SQUARES(type, load)
DEFINE_TYPE(f64, NAME(load_f64)(raw, i))
DEFINE_TYPE(f32, NAME(load_f32)(raw, i))
DEFINE_TYPE(bf16, NAME(load_bf16)(raw, i))
DEFINE_TYPE(f16, NAME(load_f16)(raw, i))
DEFINE_TYPE(f8, table[raw[i]])

/* The same for four checkpoints, in order, given their numbers: the sum is read and written once. */
TARGET static void NAME(add_four)(double *restrict sum, const double *const *numbers, Py_ssize_t count,
                                  const double *weights, int is_first)
{
    const double *restrict a = numbers[0], *restrict b = numbers[1], *restrict c = numbers[2], *restrict d = numbers[3];
    double of_a = weights[0], of_b = weights[1], of_c = weights[2], of_d = weights[3];
    if (is_first)
        for (Py_ssize_t i = 0; i < count; i++)
            sum[i] = of_a * a[i] + of_b * b[i] + of_c * c[i] + of_d * d[i];
    else
        for (Py_ssize_t i = 0; i < count; i++)
            sum[i] = sum[i] + of_a * a[i] + of_b * b[i] + of_c * c[i] + of_d * d[i];
}

/* Whether every number is below the limit; a NaN is not. */
TARGET static int NAME(are_below)(const double *values, Py_ssize_t count, double limit)
{
    uint64_t beyond = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        beyond |= fabs(values[i]) < limit ? 0 : ~(uint64_t)0;
    return beyond == 0;
}

TARGET static void NAME(round_f32)(const double *restrict values, Py_ssize_t count, float *restrict out)
{
    for (Py_ssize_t i = 0; i < count; i++)
        out[i] = (float)values[i];
}

/* Round once, to nearest, ties to even, with the integers that hold the bits of a float64.

   Of a normal number of the narrow type, half of the last place kept (less one, if that place is even) is added to the
   bits and the rest is cut off. To a number below the normal ones a power of two is added, so large that the places
   kept are the last ones of the sum: the addition rounds, and the difference of the bits is the code. */
INLINE TARGET uint64_t NAME(narrow)(double value, const struct narrow *type)
{
    uint64_t bits, sum_bits, magic_bits;
    memcpy(&bits, &value, 8);
    uint64_t sign = bits >> 63;
    bits &= ~SIGN;
    int cut = 52 - type->fraction_bits;
    uint64_t normal = (bits + (((uint64_t)1 << (cut - 1)) - 1) + ((bits >> cut) & 1)) >> cut;
    normal -= (uint64_t)(1023 - type->bias) << type->fraction_bits;
    double magic = type->magic, sum = fabs(value) + magic;
    memcpy(&sum_bits, &sum, 8);
    memcpy(&magic_bits, &magic, 8);
    uint64_t code = fabs(value) < type->least_normal ? sum_bits - magic_bits : normal;
    code = code > type->largest ? type->beyond : code;
    code = value == value ? code : type->nan;
    sign &= code != 0 || type->has_negative_zero;
    return code | sign << (type->bits - 1);
}

#define DEFINE_ROUND(width)                                                                                            \
    TARGET static void NAME(round_##width)(const double *restrict values, Py_ssize_t count,                            \
                                           uint##width##_t *restrict out, const struct narrow *given)                  \
    {                                                                                                                  \
        const struct narrow type = *given;                                                                             \
        for (Py_ssize_t i = 0; i < count; i++)                                                                         \
            out[i] = (uint##width##_t)NAME(narrow)(values[i], &type);                                                  \
    }
DEFINE_ROUND(16)
DEFINE_ROUND(8)

/* bfloat16 is the upper half of float32, so rounding twice is wrong only where the first gives a midpoint: exactly the
   highest of the lower bits is set. Such tiles, which are rare, are rounded once from the start. A NaN must be 0x7fc0...
   in its upper half. */
TARGET static void NAME(round_bf16)(const double *restrict values, Py_ssize_t count, uint16_t *restrict out,
                                    const struct narrow *type)
{
    for (Py_ssize_t begin = 0; begin < count; begin += MIDPOINT_TILE) {
        Py_ssize_t length = count - begin < MIDPOINT_TILE ? count - begin : MIDPOINT_TILE;
        const double *restrict part = values + begin;
        float nearest[MIDPOINT_TILE];
        uint32_t midpoints = 0;
        for (Py_ssize_t i = 0; i < length; i++)
            nearest[i] = (float)part[i];
        for (Py_ssize_t i = 0; i < length; i++) {
            uint32_t bits;
            memcpy(&bits, nearest + i, 4);
            midpoints |= (bits & 0xffff) == 0x8000;
            out[begin + i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
        if (midpoints)
            NAME(round_16)(part, length, out + begin, type);
    }
}

static const struct loops NAME(loops) = {
    .add = {NAME(add_f64), NAME(add_f32), NAME(add_bf16), NAME(add_f16), NAME(add_f8)},
    .squares = {NAME(squares_f64), NAME(squares_f32), NAME(squares_bf16), NAME(squares_f16), NAME(squares_f8)},
    .add_four = NAME(add_four),
    .are_below = NAME(are_below),
    .round_f32 = NAME(round_f32),
    .round_bf16 = NAME(round_bf16),
    .round_16 = NAME(round_16),
    .round_8 = NAME(round_8),
};

#undef DEFINE_ADD
#undef DEFINE_SQUARES
#undef DEFINE_TYPE
#undef DEFINE_ROUND
#undef NAME
#undef TARGET
