// A few rows through Llama-like decoder layers on an x86 CPU, weights read once and where they lie.
//
// Three functions are exported, plain C, no torch: `eagle_linear` (one product), `eagle_layers` (a stack of layers, all of
// it one parallel region whose threads meet five times per layer) and `eagle_totals` (of rows of logits). The arithmetic is
// in kernels.h, compiled once per instruction set; which one runs is asked of the CPU. `eagle/nn/native/__init__.py` builds
// and calls this.
#include <cpuid.h>
#include <immintrin.h>
#include <omp.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

using bf16 = uint16_t;

// --- what the caller passes: pointers to tensors of one dtype, rows contiguous ------------------------------------------

struct Matrix {  // a linear layer: weight [out, in], bias [out] or null
    const void *weight, *bias;
};

struct Layer {  // null where the layer has no such part; hidden_norm makes the input [norm(embedded), norm(hidden)]
    const void *input_norm, *hidden_norm, *post_norm, *q_norm, *k_norm;
    Matrix q, k, v, o, gate, up, down;
};

struct Shape {
    int64_t hidden, heads, groups, head, inner;  // D, H, G, E, I
    float eps, scale, residual;                  // of the norms; of attention scores; of what a block adds
    int64_t norm_residual;                       // whether the residual is the normed hidden state (some draft heads)
};

struct Call {
    int64_t batch, n, layers, slots;             // B rows of n nodes, L slots that each node may see
    const Layer *layer;
    const void *input, *embedded;                // [B n, D]; embedded null but for a draft head
    const float *angles;                         // [B n, 2, E]: cosines; sines, negative in their first half
    const int64_t *write;                        // [B, n]: the slot that a node's keys and values are written to
    void *const *cache;                          // per layer: keys and values [2, B, G, slots, E], strides below
    int64_t side, row, group, first;             // strides in elements; the first slot that is seen
    const void *mask;                            // [B or 1, n, L], added to scores
    int64_t mask_row;                            // its stride over B
    const int64_t *taps;                         // layers whose inputs are wanted, ascending, -1 at the end
    void *aux;                                   // [B n, taps, D]
    const void *final_norm;                      // of the output; null: none
    void *output;                                // [B n, D]
};

struct Range {
    int64_t begin, end;
};

struct Team {  // one thread's place among those of a parallel region
    int64_t index, count;
    Range share(int64_t total) const { return {total * index / count, total * (index + 1) / count}; }
    void meet() const {
#pragma omp barrier
    }
};

constexpr int64_t CHUNK = 64;     // outputs that one thread finishes at once
constexpr int64_t ATTENDING = 16;  // query rows that read the keys together

template <class T> constexpr T minus_infinity() { return -INFINITY; }
template <> constexpr bf16 minus_infinity() { return 0xff80; }

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Scratch {  // floats, aligned; not initialised
    std::unique_ptr<float, void (*)(void *)> data;
    explicit Scratch(int64_t count)
        : data(static_cast<float *>(aligned_alloc(64, round_up(count * 4 + 64, 64))), std::free) {}
    operator float *() const { return data.get(); }
};

// --- AVX-512 with dot products of bfloat16 --------------------------------------------------------------------------------

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))
#define INLINE TARGET inline __attribute__((always_inline))
namespace wide {
using F = __m512;
constexpr int LANES = 16;
constexpr int64_t INPUTS_AT_ONCE = INT64_MAX;  // bytes of 8 rows; of wider ones 4 at once
constexpr int outputs_at_once(int rows) { return rows <= 2 ? 8 : rows <= 4 ? 4 : 2; }  // 16 sums or fewer in registers

INLINE F set(float x) { return _mm512_set1_ps(x); }
INLINE F load(const float *p) { return _mm512_loadu_ps(p); }
INLINE F load(const bf16 *p) {
    auto wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE void store(float *p, F x) { _mm512_storeu_ps(p, x); }
INLINE void store(bf16 *p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), (__m256i)_mm512_cvtneps_pbh(x)); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F round(F x) { return _mm512_roundscale_ps(x, 0); }
INLINE F power_of_two(F n) { return _mm512_scalef_ps(set(1), n); }
INLINE F zero_below(F x, F limit, F value) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value); }
INLINE float sum(F x) { return _mm512_reduce_add_ps(x); }
INLINE float largest(F x) { return _mm512_reduce_max_ps(x); }

template <class T> struct Dot;  // STEP weights times STEP inputs, added to the sums
template <> struct Dot<float> {
    static constexpr int STEP = LANES;
    using Input = float;
    using Weights = F;
    INLINE static Weights weights(const float *w) { return load(w); }
    INLINE static F add(F sums, Weights w, const Input *x) { return fma(w, load(x), sums); }
    INLINE static void prepare(const float *x, Input *out) { store(out, load(x)); }
};
template <> struct Dot<bf16> {
    static constexpr int STEP = 2 * LANES;
    using Input = bf16;
    using Weights = __m512i;
    INLINE static Weights weights(const bf16 *w) { return _mm512_loadu_si512(w); }
    INLINE static F add(F sums, Weights w, const Input *x) {
        return _mm512_dpbf16_ps(sums, (__m512bh)w, (__m512bh)_mm512_loadu_si512(x));
    }
    INLINE static void prepare(const float *x, Input *out) {
        store(out, load(x));
        store(out + LANES, load(x + LANES));
    }
};
}  // namespace wide
namespace avx512 {
using namespace wide;
#include "kernels.h"
}  // namespace avx512
#undef TARGET

// --- the same with AMX for products of bfloat16 ---------------------------------------------------------------------------

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16")))
namespace amx {
using namespace wide;
#include "kernels.h"
#include "amx.h"
}  // namespace amx
#undef TARGET

// --- AVX2: a bfloat16 is the upper half of a float ------------------------------------------------------------------------

#define TARGET __attribute__((target("avx2,fma")))
namespace avx2 {
using F = __m256;
constexpr int LANES = 8;
constexpr int outputs_at_once(int rows) { return rows == 1 ? 4 : rows <= 4 ? 2 : 1; }
constexpr int64_t INPUTS_AT_ONCE = 32 << 10;  // bytes of 8 rows that the nearest cache holds; of wider ones 4 at once

INLINE F set(float x) { return _mm256_set1_ps(x); }
INLINE F load(const float *p) { return _mm256_loadu_ps(p); }
INLINE F load(const bf16 *p) {
    auto wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE void store(float *p, F x) { _mm256_storeu_ps(p, x); }
INLINE void store(bf16 *p, F x) {  // to nearest, ties to even; NaN stays NaN
    auto bits = _mm256_castps_si256(x);
    auto odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    auto rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    auto nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    auto words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    auto halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_castsi256_si128(halves));
}
INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
INLINE F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F power_of_two(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE F zero_below(F x, F limit, F value) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), value); }
INLINE float sum(F x) {
    auto half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE float largest(F x) {
    alignas(32) float of[LANES];
    store(of, x);
    return *std::max_element(of, of + LANES);
}

template <class T> struct Dot;
template <> struct Dot<float> {
    static constexpr int STEP = LANES;
    using Input = float;
    using Weights = F;
    INLINE static Weights weights(const float *w) { return load(w); }
    INLINE static F add(F sums, Weights w, const Input *x) { return fma(w, load(x), sums); }
    INLINE static void prepare(const float *x, Input *out) { store(out, load(x)); }
};
template <> struct Dot<bf16> {  // inputs are floats, the even ones of a step before the odd ones
    static constexpr int STEP = 2 * LANES;
    using Input = float;
    struct Weights {
        F even, odd;
    };
    INLINE static Weights weights(const bf16 *w) {
        auto pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(w));
        auto odd = _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000)));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(odd)};
    }
    INLINE static F add(F sums, Weights w, const Input *x) {
        return fma(w.odd, load(x + LANES), fma(w.even, load(x), sums));
    }
    INLINE static void prepare(const float *x, Input *out) {
        for (int i = 0; i < LANES; i++) out[i] = x[2 * i], out[LANES + i] = x[2 * i + 1];
    }
};
#include "kernels.h"
}  // namespace avx2
#undef TARGET

// --- what is exported -------------------------------------------------------------------------------------------------------

enum { NONE, AVX2, AVX512, AMX };

extern "C" int64_t eagle_instructions() {
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512) return amx::permitted() ? AMX : AVX512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? AVX2 : NONE;
}

// `threads` threads of torch's pool call function(team), each.
template <class Function> void in_parallel(int64_t threads, bool tiles, Function function) {
#pragma omp parallel num_threads(threads)
    {
        if (tiles) amx::configure();
        function(Team{omp_get_thread_num(), omp_get_num_threads()});
        if (tiles) amx::release();
    }
}

// y [rows, out] = x [rows, in] W^T + b, all of one dtype: 4 bytes float32, 2 bytes bfloat16.
extern "C" void eagle_linear(int64_t instructions, int64_t threads, int64_t bytes, const void *x, int64_t rows, int64_t in,
                             int64_t out, Matrix matrix, void *y) {
    const bool half = bytes == 2;
    auto *chosen = instructions == AMX      ? (half ? amx::linear<bf16> : amx::linear<float>)
                   : instructions == AVX512 ? (half ? avx512::linear<bf16> : avx512::linear<float>)
                                            : (half ? avx2::linear<bf16> : avx2::linear<float>);
    in_parallel(threads, instructions == AMX && half, [=](Team team) { chosen(team, x, rows, in, out, matrix, y); });
}

extern "C" void eagle_layers(int64_t instructions, int64_t threads, int64_t bytes, const Shape *shape, const Call *call) {
    const bool half = bytes == 2;
    auto *chosen = instructions == AMX      ? (half ? amx::layers<bf16> : amx::layers<float>)
                   : instructions == AVX512 ? (half ? avx512::layers<bf16> : avx512::layers<float>)
                                            : (half ? avx2::layers<bf16> : avx2::layers<float>);
    Scratch shared(call->batch * call->n * (shape->hidden + 2 * shape->heads * shape->head + shape->inner));
    in_parallel(threads, instructions == AMX && half, [&](Team team) { chosen(team, *shape, *call, shared); });
}

// Logits [rows, columns] of one dtype, as above -> log of the sum of exponentials and first of the largest, each [rows].
extern "C" void eagle_totals(int64_t instructions, int64_t threads, int64_t bytes, const void *logits, int64_t rows,
                             int64_t columns, float *log_sum, int64_t *likeliest) {
    const bool half = bytes == 2;
    auto *chosen = instructions == AVX2 ? (half ? avx2::totals<bf16> : avx2::totals<float>)
                                        : (half ? avx512::totals<bf16> : avx512::totals<float>);
    in_parallel(threads, false, [=](Team team) { chosen(team, logits, rows, columns, log_sum, likeliest); });
}
