/* SPDX-License-Identifier: BSD-2-Clause */
#include "zero.h"
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/*
 * The zero test.
 *
 * Two very different inputs matter.  A page with data shows it in its first
 * cache line nearly always, so each page starts with a look at that line: one
 * load, one branch, done.  A zero page must be read to its end, at the speed of
 * memory: the bulk is OR-ed together in steps of four cache lines with one
 * branch each, and the lines two steps and one page ahead are prefetched,
 * because the hardware's prefetchers do not cross a 4 KiB border by themselves.
 * A prefetch behind the end of the memory is dropped by the CPU; it cannot
 * fault.
 *
 * Every implementation is compiled into every build by target attributes; which
 * of them may run is asked from the CPU (and from the operating system, which
 * must save the wide registers) by zero_ops_get().
 */

enum {
	ZERO_PAGE = 4096, /* bytes; the first line of each is looked at first */
	ZERO_LINE = 64, /* bytes of a cache line */
	ZERO_STEP = 256, /* bytes per branch in the bulk */
	ZERO_AHEAD = 4096, /* bytes to prefetch ahead */
};

/* zero_prefetch - ask for the four lines ZERO_AHEAD bytes behind @p. */
static inline __attribute__((always_inline)) void zero_prefetch(const uint8_t *p)
{
	for (unsigned i = 0; i < ZERO_STEP; i += ZERO_LINE)
		__builtin_prefetch(p + ZERO_AHEAD + i, 0, 0);
}

/* zero_test_c - plain C; see struct zero_ops. */
static bool zero_test_c(const void *mem, size_t len)
{
	const uint64_t *p = mem, *end = (const uint64_t *)((const uint8_t *)mem + len);

	for (; p < end; p += 8) {
		uint64_t a = p[0] | p[1], b = p[2] | p[3], c = p[4] | p[5], d = p[6] | p[7];

		if (a | b | c | d)
			return false;
	}
	return true;
}

static const struct zero_ops zero_c = { .name = "c", .is_zero = zero_test_c };

#if defined(__x86_64__)

/* zero_page_avx2 - one page of 4096 bytes. */
static inline __attribute__((always_inline, target("avx2"))) bool zero_page_avx2(const uint8_t *p)
{
	const __m256i *v = (const __m256i *)p, *end = (const __m256i *)(p + ZERO_PAGE);
	__m256i first = _mm256_or_si256(_mm256_load_si256(v), _mm256_load_si256(v + 1));

	if (!_mm256_testz_si256(first, first))
		return false;
	for (; v < end; v += 8) {
		zero_prefetch((const uint8_t *)v);
		__m256i a = _mm256_or_si256(_mm256_load_si256(v), _mm256_load_si256(v + 1));
		__m256i b = _mm256_or_si256(_mm256_load_si256(v + 2), _mm256_load_si256(v + 3));
		__m256i c = _mm256_or_si256(_mm256_load_si256(v + 4), _mm256_load_si256(v + 5));
		__m256i d = _mm256_or_si256(_mm256_load_si256(v + 6), _mm256_load_si256(v + 7));
		__m256i all = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));

		if (!_mm256_testz_si256(all, all))
			return false;
	}
	return true;
}

/* zero_test_avx2 - see struct zero_ops. */
static __attribute__((target("avx2"))) bool zero_test_avx2(const void *mem, size_t len)
{
	for (const uint8_t *p = mem, *end = p + len; p < end; p += ZERO_PAGE)
		if (!zero_page_avx2(p))
			return false;
	return true;
}

/* zero_page_avx512 - one page of 4096 bytes. */
static inline __attribute__((always_inline, target("avx512f"))) bool
zero_page_avx512(const uint8_t *p)
{
	const __m512i *v = (const __m512i *)p, *end = (const __m512i *)(p + ZERO_PAGE);
	__m512i first = _mm512_load_si512(v);

	if (_mm512_test_epi64_mask(first, first))
		return false;
	for (; v < end; v += 4) {
		zero_prefetch((const uint8_t *)v);
		__m512i a = _mm512_or_si512(_mm512_load_si512(v), _mm512_load_si512(v + 1));
		__m512i b = _mm512_or_si512(_mm512_load_si512(v + 2), _mm512_load_si512(v + 3));
		__m512i all = _mm512_or_si512(a, b);

		if (_mm512_test_epi64_mask(all, all))
			return false;
	}
	return true;
}

/* zero_test_avx512 - see struct zero_ops. */
static __attribute__((target("avx512f"))) bool zero_test_avx512(const void *mem, size_t len)
{
	for (const uint8_t *p = mem, *end = p + len; p < end; p += ZERO_PAGE)
		if (!zero_page_avx512(p))
			return false;
	return true;
}

static const struct zero_ops zero_avx2 = { .name = "avx2", .is_zero = zero_test_avx2 };
static const struct zero_ops zero_avx512 = { .name = "avx512", .is_zero = zero_test_avx512 };

const struct zero_ops *zero_ops_get(unsigned i)
{
	const struct zero_ops *can[3] = { &zero_c };
	unsigned nr = 1;

	if (__builtin_cpu_supports("avx2"))
		can[nr++] = &zero_avx2;
	if (__builtin_cpu_supports("avx512f"))
		can[nr++] = &zero_avx512;
	return i < nr ? can[i] : NULL;
}

#elif defined(__aarch64__)

/* zero_line_neon - 64 bytes OR-ed into 16. */
static inline uint8x16_t zero_line_neon(const uint8_t *p)
{
	return vorrq_u8(vorrq_u8(vld1q_u8(p), vld1q_u8(p + 16)),
			vorrq_u8(vld1q_u8(p + 32), vld1q_u8(p + 48)));
}

/* zero_page_neon - one page of 4096 bytes. */
static inline bool zero_page_neon(const uint8_t *p)
{
	if (vmaxvq_u8(zero_line_neon(p)))
		return false;
	for (const uint8_t *end = p + ZERO_PAGE; p < end; p += ZERO_STEP) {
		zero_prefetch(p);
		uint8x16_t a = vorrq_u8(zero_line_neon(p), zero_line_neon(p + 64));
		uint8x16_t b = vorrq_u8(zero_line_neon(p + 128), zero_line_neon(p + 192));

		if (vmaxvq_u8(vorrq_u8(a, b)))
			return false;
	}
	return true;
}

/* zero_test_neon - see struct zero_ops. */
static bool zero_test_neon(const void *mem, size_t len)
{
	for (const uint8_t *p = mem, *end = p + len; p < end; p += ZERO_PAGE)
		if (!zero_page_neon(p))
			return false;
	return true;
}

static const struct zero_ops zero_neon = { .name = "neon", .is_zero = zero_test_neon };

const struct zero_ops *zero_ops_get(unsigned i)
{
	/* Advanced SIMD is part of every AArch64 CPU that runs Linux. */
	return i == 0 ? &zero_c : i == 1 ? &zero_neon : NULL;
}

#else

const struct zero_ops *zero_ops_get(unsigned i)
{
	return i == 0 ? &zero_c : NULL;
}

#endif

const struct zero_ops *zero_ops_best(void)
{
	const struct zero_ops *best = &zero_c, *next;

	/* They are listed from narrow to wide. */
	for (unsigned i = 1; (next = zero_ops_get(i)); i++)
		best = next;
	return best;
}

bool zero_looks(const void *p, size_t len)
{
	for (size_t at = 0; at < len; at += 4096) {
		uint64_t v[8], any = 0;

		memcpy(v, (const uint8_t *)p + at, sizeof(v));
		for (unsigned i = 0; i < 8; i++)
			any |= v[i];
		if (any)
			return false;
	}
	return true;
}
