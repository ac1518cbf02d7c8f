// rbar: version, platform and the few compile-time promises the library makes.
// This is the only header that names a compiler or a platform.
#pragma once

#define RBAR_VERSION_MAJOR 0
#define RBAR_VERSION_MINOR 1
#define RBAR_VERSION_PATCH 0
#define RBAR_VERSION_STRING "0.1.0"

// xsimd's sin and cos are wrong by up to 2.0 under -ffast-math (measured with 8.1 and 14.3), and
// NaN checks vanish. -fno-math-errno -fno-trapping-math -ffp-contract=fast are safe and enough.
#if defined(__FAST_MATH__)
#error "rbar does not support -ffast-math: use -fno-math-errno -fno-trapping-math -ffp-contract=fast"
#endif

#if defined(_MSVC_LANG)
static_assert(_MSVC_LANG >= 202002L, "rbar needs C++20");
#else
static_assert(__cplusplus >= 202002L, "rbar needs C++20");
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define RBAR_INLINE __forceinline
#define RBAR_INLINE_LAMBDA
#define RBAR_RESTRICT __restrict
#define RBAR_NOINLINE __declspec(noinline)
#define RBAR_UNROLL
#define RBAR_PREFETCH_WRITE(pointer) static_cast<void>(pointer)
#define RBAR_PREFETCH_FAR(pointer) static_cast<void>(pointer)
#else
#define RBAR_INLINE inline __attribute__((always_inline))
#define RBAR_INLINE_LAMBDA __attribute__((always_inline))  // after the parameters; likewise for -O2
#define RBAR_RESTRICT __restrict__
#define RBAR_NOINLINE __attribute__((noinline))
// Before a loop over a register block, of a constant number of turns. With -O2 GCC leaves such loops as they are, and
// the block in memory: attention takes three times as long. clang needs no word.
#if defined(__clang__)
#define RBAR_UNROLL
#else
#define RBAR_UNROLL _Pragma("GCC unroll 64")
#endif
#define RBAR_PREFETCH_WRITE(pointer) __builtin_prefetch(pointer, 1)   // a cache line soon written
#define RBAR_PREFETCH_FAR(pointer) __builtin_prefetch(pointer, 0, 2)  // a cache line read later: into L2
#endif

// GCC 12's AVX-512 intrinsics start from deliberately undefined registers, and -Wall reports that in every caller
// (GCC bug 105593). The warning belongs to the header's lines, so it is silenced where they are first read.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13 && defined(__AVX512F__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
