// Products of bfloat16 by tiles, included behind kernels.h by few_rows.cpp. A tile is 16 rows of 64 bytes:
//
//     A  16 outputs x 32 weights, loaded where they lie        B  16 pairs of inputs x 16 rows of x, arranged beforehand
//     C [output, row of x] += A B                              up to four C at once, so that none waits for itself

constexpr int64_t TILE = 16, STEP = 32;  // rows of a tile; weights of one output in it

bool permitted() {
#ifdef __linux__
    constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;
    constexpr long ASK = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d = 0;
    const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILES);
    return has && syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
#else
    return false;
#endif
}

// Stores to memory that a tile instruction reads are done: compilers do not know that it reads them.
inline void written(const void *memory) { asm volatile("" : : "r"(memory) : "memory"); }

TARGET void configure() {
    alignas(64) uint8_t config[64] = {1};  // palette 1; bytes per row from 16 on, rows from 48 on
    for (int tile = 0; tile < 8; tile++) config[16 + 2 * tile] = 64, config[48 + tile] = TILE;
    written(config);
    _tile_loadconfig(config);
}

TARGET void release() { _tile_release(); }

// 16 x 16 values of 32 bits, rows for columns.
INLINE void transpose(const float *from, F *to) {
    F a[TILE], b[TILE];
    for (int i = 0; i < TILE; i += 2) {
        F even = load(from + i * TILE), odd = load(from + (i + 1) * TILE);
        a[i] = _mm512_unpacklo_ps(even, odd), a[i + 1] = _mm512_unpackhi_ps(even, odd);
    }
    for (int i = 0; i < TILE; i++) {
        const int at = i / 4 * 4 + i % 4 / 2;
        const auto first = _mm512_castps_pd(a[at]), second = _mm512_castps_pd(a[at + 2]);
        b[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(first, second) : _mm512_unpacklo_pd(first, second));
    }
    for (int i = 0; i < TILE; i++) {
        const int at = i / 8 * 8 + i % 4;
        a[i] = i % 8 < 4 ? _mm512_shuffle_f32x4(b[at], b[at + 4], 0x88) : _mm512_shuffle_f32x4(b[at], b[at + 4], 0xdd);
    }
    for (int i = 0; i < TILE; i++)
        to[i] = i < 8 ? _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88) : _mm512_shuffle_f32x4(a[i - 8], a[i], 0xdd);
}

template <> struct Rows<bf16> {  // tiles [block of 16 rows, step]: first [row, 32 inputs], when ready [pair of inputs, row, 2]
    static int64_t floats(int64_t rows, int64_t in) { return round_up(rows, TILE) * round_up(in, STEP) / 2; }
    int64_t steps;
    bf16 *data;
    TARGET Rows(float *memory, int64_t in) : steps((in + STEP - 1) / STEP), data(reinterpret_cast<bf16 *>(memory)) {}
    TARGET bf16 *tile(int64_t block, int64_t step) const { return data + (block * steps + step) * TILE * STEP; }
    TARGET void put(int64_t row, const float *x, int64_t in) const {
        for (int64_t i = 0; i < in; i += STEP) {
            bf16 *to = tile(row / TILE, i / STEP) + row % TILE * STEP;
            store(to, load_up_to(x + i, in - i));
            store(to + LANES, i + LANES < in ? load_up_to(x + i + LANES, in - i - LANES) : set(0));
        }
    }
    TARGET void ready(int64_t rows) const {
        for (int64_t i = 0; i < (rows + TILE - 1) / TILE * steps; i++) {
            F columns[TILE];
            auto *values = reinterpret_cast<float *>(tile(0, i));
            transpose(values, columns);
            for (int64_t pair = 0; pair < TILE; pair++) store(values + pair * TILE, columns[pair]);
        }
        written(data);
    }
};

// 16 outputs x 32 weights as a tile: in place, or copied among zeros at an edge.
struct Tile {
    const bf16 *at;
    int64_t stride;
    TARGET Tile(const bf16 *w, int64_t in, int64_t outputs, int64_t left, bf16 *copy) : at(w), stride(in * sizeof(bf16)) {
        if (outputs >= TILE && left >= STEP) return;
        std::memset(copy, 0, TILE * STEP * sizeof(bf16));
        for (int64_t o = 0; o < std::min(outputs, TILE); o++)
            std::memcpy(copy + o * STEP, w + o * in, std::min(left, STEP) * sizeof(bf16));
        at = copy, stride = STEP * sizeof(bf16);
        written(copy);
    }
};

// A stored C [16 outputs, 16 rows of x] to y [rows, outputs], as far as there are rows and outputs.
TARGET void keep(const float *sums, int64_t rows, int64_t outputs, float *y, int64_t stride) {
    F columns[TILE];
    transpose(sums, columns);
    for (int64_t row = 0; row < std::min(rows, TILE); row++) store_up_to(y + row * stride, columns[row], outputs);
}

// Two shapes of four C: up to 16 rows of x times 64 outputs, or up to 32 times 32. Names of tiles must be literals.
#define WEIGHTS(tile, block)                                                                  \
    if (block * TILE < left) {                                                                \
        const Tile from(at + block * TILE * in, in, left - block * TILE, in - i, copy);       \
        _tile_loadd(tile, from.at, from.stride);                                              \
    }
#define KEEP(tile, block, first)                                                                                    \
    if (block * TILE < left && first < rows) {                                                                      \
        _tile_stored(tile, sums, 64);                                                                               \
        keep(sums, rows - (first), left - block * TILE, y + (first) * stride + output + block * TILE, stride);      \
    }

template <>
TARGET void product<bf16>(const bf16 *w, int64_t in, int64_t out, const Rows<bf16> &x, int64_t rows, float *y,
                          int64_t stride) {
    alignas(64) bf16 copy[TILE * STEP];
    alignas(64) float sums[TILE * TILE];
    const int64_t together = rows <= TILE ? 4 * TILE : 2 * TILE;
    for (int64_t output = 0; output < out; output += together) {
        const int64_t left = std::min(together, out - output);
        for (int64_t row = 0; row < rows; row += rows <= TILE ? TILE : 2 * TILE) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t i = 0; i < in; i += STEP) {
                const bf16 *at = w + output * in + i;
                _tile_loadd(4, x.tile(row / TILE, i / STEP), 64);
                WEIGHTS(6, 0)
                _tile_dpbf16ps(0, 6, 4);
                WEIGHTS(7, 1)
                _tile_dpbf16ps(1, 7, 4);
                if (rows <= TILE) {
                    WEIGHTS(6, 2)
                    _tile_dpbf16ps(2, 6, 4);
                    WEIGHTS(7, 3)
                    _tile_dpbf16ps(3, 7, 4);
                } else if (row + TILE < rows) {
                    _tile_loadd(5, x.tile(row / TILE + 1, i / STEP), 64);
                    _tile_dpbf16ps(2, 6, 5);
                    _tile_dpbf16ps(3, 7, 5);
                }
            }
            KEEP(0, 0, row)
            KEEP(1, 1, row)
            if (rows <= TILE) {
                KEEP(2, 2, row)
                KEEP(3, 3, row)
            } else {
                KEEP(2, 0, row + TILE)
                KEEP(3, 1, row + TILE)
            }
        }
    }
}
#undef WEIGHTS
#undef KEEP
