/* CRC-32 (ISO 3309, as in zip files). ARM has an instruction for it.

   x86 has one for another polynomial, but carry-less multiplication: Gopal et al. 2009, "Fast CRC computation for generic
   polynomials using PCLMULQDQ instruction" (Intel). A number of 128 bits is folded over a distance: it is multiplied by
   the remainder of that power of x, and added to the 128 bits there. The table does the last 16 bytes. */

#if defined(__GNUC__) && (defined(__x86_64__) || (defined(__AARCH64EL__) && defined(__linux__)))
#define HAS_READS 1

static uint32_t (*crc_of)(uint32_t, const unsigned char *, Py_ssize_t); /* of bytes after those with another CRC */

#define POLYNOMIAL 0xedb88320u /* its lowest power is the highest bit */

static uint32_t crc_table[256];

static void set_up_crc(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t rest = n;
        for (int bit = 0; bit < 8; bit++)
            rest = rest & 1 ? rest >> 1 ^ POLYNOMIAL : rest >> 1;
        crc_table[n] = rest;
    }
}

static uint32_t crc_of_bytes(uint32_t state, const unsigned char *raw, Py_ssize_t length)
{
    for (Py_ssize_t i = 0; i < length; i++)
        state = state >> 8 ^ crc_table[(state ^ raw[i]) & 0xff];
    return state;
}

#ifdef __x86_64__
#include <immintrin.h>

/* x^power modulo the polynomial, shifted as the product of two numbers with their bits in reverse order needs it. */
static int64_t remainder_of(int power)
{
    uint32_t rest = 0x80000000u; /* 1 */
    for (int n = 0; n < power; n++)
        rest = rest & 1 ? rest >> 1 ^ POLYNOMIAL : rest >> 1;
    return (int64_t)((uint64_t)rest << 1);
}

static int64_t fold_by[4][2]; /* over 128, 512, 1024 and 2048 bits: for the lower and the higher half */

static void set_up_folds(void)
{
    const int distances[4] = {128, 512, 1024, 2048};
    for (int n = 0; n < 4; n++) {
        fold_by[n][0] = remainder_of(distances[n] + 32);
        fold_by[n][1] = remainder_of(distances[n] - 32);
    }
}

#define ONE __attribute__((target("sse4.1,pclmul")))
#define TWO __attribute__((target("avx2,pclmul,vpclmulqdq")))
#define FOUR __attribute__((target("avx512f,pclmul,vpclmulqdq")))

INLINE ONE __m128i fold_one(__m128i number, __m128i by, __m128i there)
{
    __m128i low = _mm_clmulepi64_si128(number, by, 0x00), high = _mm_clmulepi64_si128(number, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

INLINE TWO __m256i fold_two(__m256i numbers, __m256i by, __m256i there)
{
    __m256i low = _mm256_clmulepi64_epi128(numbers, by, 0x00), high = _mm256_clmulepi64_epi128(numbers, by, 0x11);
    return _mm256_xor_si256(_mm256_xor_si256(low, high), there);
}

INLINE FOUR __m512i fold_four(__m512i numbers, __m512i by, __m512i there)
{
    __m512i low = _mm512_clmulepi64_epi128(numbers, by, 0x00), high = _mm512_clmulepi64_epi128(numbers, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, there, 0x96); /* the exclusive or of all three */
}

/* Fold numbers that lie side by side, then the rest of the bytes, into one number, and finish it by the table. */
INLINE ONE uint32_t finish_crc(__m128i *numbers, int count, const unsigned char *raw, Py_ssize_t length)
{
    __m128i by = _mm_set_epi64x(fold_by[0][1], fold_by[0][0]), number = numbers[0];
    for (int n = 1; n < count; n++)
        number = fold_one(number, by, numbers[n]);
    for (; length >= 16; length -= 16, raw += 16)
        number = fold_one(number, by, _mm_loadu_si128((const __m128i *)raw));
    unsigned char last[16];
    _mm_storeu_si128((__m128i *)last, number);
    return crc_of_bytes(crc_of_bytes(0, last, 16), raw, length);
}

ONE static uint32_t crc_one(uint32_t crc, const unsigned char *raw, Py_ssize_t length)
{
    if (length < 64)
        return ~crc_of_bytes(~crc, raw, length);
    __m128i by = _mm_set_epi64x(fold_by[1][1], fold_by[1][0]), numbers[4];
    for (int n = 0; n < 4; n++)
        numbers[n] = _mm_loadu_si128((const __m128i *)raw + n);
    numbers[0] = _mm_xor_si128(numbers[0], _mm_cvtsi32_si128((int)~crc));
    for (raw += 64, length -= 64; length >= 64; raw += 64, length -= 64)
        for (int n = 0; n < 4; n++)
            numbers[n] = fold_one(numbers[n], by, _mm_loadu_si128((const __m128i *)raw + n));
    return ~finish_crc(numbers, 4, raw, length);
}

TWO static uint32_t crc_two(uint32_t crc, const unsigned char *raw, Py_ssize_t length)
{
    if (length < 128)
        return crc_one(crc, raw, length);
    __m256i by = _mm256_set_epi64x(fold_by[2][1], fold_by[2][0], fold_by[2][1], fold_by[2][0]), pairs[4];
    for (int n = 0; n < 4; n++)
        pairs[n] = _mm256_loadu_si256((const __m256i *)raw + n);
    pairs[0] = _mm256_xor_si256(pairs[0], _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, (int)~crc));
    for (raw += 128, length -= 128; length >= 128; raw += 128, length -= 128)
        for (int n = 0; n < 4; n++)
            pairs[n] = fold_two(pairs[n], by, _mm256_loadu_si256((const __m256i *)raw + n));
    __m128i numbers[8];
    for (int n = 0; n < 4; n++)
        _mm256_storeu_si256((__m256i *)numbers + n, pairs[n]);
    return ~finish_crc(numbers, 8, raw, length);
}

FOUR static uint32_t crc_four(uint32_t crc, const unsigned char *raw, Py_ssize_t length)
{
    if (length < 256)
        return crc_two(crc, raw, length);
    __m512i by = _mm512_broadcast_i32x4(_mm_set_epi64x(fold_by[3][1], fold_by[3][0])), fours[4];
    for (int n = 0; n < 4; n++)
        fours[n] = _mm512_loadu_si512(raw + 64 * n);
    fours[0] = _mm512_xor_si512(fours[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~crc)));
    for (raw += 256, length -= 256; length >= 256; raw += 256, length -= 256)
        for (int n = 0; n < 4; n++)
            fours[n] = fold_four(fours[n], by, _mm512_loadu_si512(raw + 64 * n));
    __m128i numbers[16];
    for (int n = 0; n < 4; n++)
        _mm512_storeu_si512(numbers + 4 * n, fours[n]);
    return ~finish_crc(numbers, 16, raw, length);
}

/* Use the widest multiplication of a lane that the processor has. */
static void choose_crc(const char *lane)
{
    set_up_folds();
    int is_wide = __builtin_cpu_supports("vpclmulqdq") != 0;
    if (is_wide && strcmp(lane, "avx512") == 0)
        crc_of = crc_four;
    else if (is_wide && strcmp(lane, "avx2") == 0)
        crc_of = crc_two;
    else if (__builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("pclmul"))
        crc_of = crc_one;
}
#else
#include <sys/auxv.h>

#define HAS_CRC_INSTRUCTION (1 << 7) /* HWCAP_CRC32 */

static uint32_t crc_by_instruction(uint32_t crc, const unsigned char *raw, Py_ssize_t length)
{
    uint32_t state = ~crc;
    for (; length >= 8; length -= 8, raw += 8) {
        uint64_t bytes;
        memcpy(&bytes, raw, 8);
        __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(state) : "r"(bytes));
    }
    return ~crc_of_bytes(state, raw, length);
}

static void choose_crc(const char *lane)
{
    (void)lane;
    if (getauxval(AT_HWCAP) & HAS_CRC_INSTRUCTION)
        crc_of = crc_by_instruction;
}
#endif
#endif
