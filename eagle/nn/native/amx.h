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

template <> struct Rows<bf16> {  // [block of 16 rows, step, pair, row, 2]
    static int64_t floats(int64_t rows, int64_t in) { return round_up(rows, TILE) * round_up(in, STEP) / 2; }
    int64_t steps;
    bf16 *data;
    TARGET Rows(float *memory, int64_t in) : steps((in + STEP - 1) / STEP), data(reinterpret_cast<bf16 *>(memory)) {}
    TARGET const bf16 *tile(int64_t block, int64_t step) const { return data + (block * steps + step) * TILE * STEP; }
    TARGET void put(int64_t row, const float *x, int64_t in) const {
        auto *to = reinterpret_cast<uint32_t *>(data + row / TILE * steps * TILE * STEP) + row % TILE;
        for (int64_t i = 0; i < in; i += STEP) {
            alignas(64) uint32_t pairs[TILE];
            auto *halves = reinterpret_cast<bf16 *>(pairs);
            store(halves, load_up_to(x + i, in - i));
            store(halves + LANES, i + LANES < in ? load_up_to(x + i + LANES, in - i - LANES) : set(0));
            for (int64_t pair = 0; pair < TILE; pair++) to[(i / 2 + pair) * TILE] = pairs[pair];
        }
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

#define MULTIPLY(block, a)                                                                    \
    if (block < blocks) {                                                                     \
        const Tile weights(from + block * TILE * in, in, left - block * TILE, in - i, copy);  \
        _tile_loadd(a, weights.at, weights.stride);                                           \
        _tile_dpbf16ps(block, a, 4);                                                          \
    }
#define KEEP(block)                                                                                                    \
    if (block < blocks) {                                                                                              \
        _tile_stored(block, sums, 64);                                                                                 \
        for (int64_t r = 0; r < std::min(TILE, rows - row); r++)                                                       \
            for (int64_t o = 0; o < std::min(TILE, left - block * TILE); o++)                                          \
                y[(row + r) * stride + output + block * TILE + o] = sums[o * TILE + r];                                \
    }

template <>
TARGET void product<bf16>(const bf16 *w, int64_t in, int64_t out, const Rows<bf16> &x, int64_t rows, float *y,
                          int64_t stride) {
    alignas(64) bf16 copy[TILE * STEP];
    alignas(64) float sums[TILE * TILE];
    written(x.data);
    for (int64_t output = 0; output < out; output += 4 * TILE)
        for (int64_t row = 0; row < rows; row += TILE) {
            const int64_t left = out - output, blocks = (left + TILE - 1) / TILE;
            { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
            for (int64_t i = 0; i < in; i += STEP) {
                const bf16 *from = w + output * in + i;
                _tile_loadd(4, x.tile(row / TILE, i / STEP), 64);
                MULTIPLY(0, 5) MULTIPLY(1, 6) MULTIPLY(2, 5) MULTIPLY(3, 6)
            }
            KEEP(0) KEEP(1) KEEP(2) KEEP(3)
        }
}
#undef MULTIPLY
#undef KEEP
