// The arithmetic of few_rows.cpp, included once per instruction set, inside its namespace. Sums are float32; the hidden
// state stays float32 from the first layer to the last; only what is multiplied with bfloat16 weights, cached or returned
// is rounded. A row's result does not depend on how many rows there are.

// --- vectors ------------------------------------------------------------------------------------------------------------------

INLINE F exponential(F x) {
    x = max(set(-87), min(set(88), x));  // this order keeps NaN
    F n = round(x * set(1.44269504f)), r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    F p = set(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = fma(p, r, set(c));
    return fma(p, r * r, r + set(1)) * power_of_two(n);
}

template <class T> INLINE F load_up_to(const T *p, int64_t count, T behind = 0) {  // what stands behind the last
    if (count >= LANES) return load(p);
    T some[LANES];
    std::fill(some, some + LANES, behind);
    std::memcpy(some, p, count * sizeof(T));
    return load(some);
}

template <class T> INLINE void store_up_to(T *p, F x, int64_t count) {
    if (count >= LANES) return store(p, x);
    T some[LANES];
    store(some, x);
    std::memcpy(p, some, count * sizeof(T));
}

template <class From, class To> TARGET void convert(const From *from, int64_t count, To *to) {
    for (int64_t i = 0; i < count; i += LANES) store_up_to(to + i, load_up_to(from + i, count - i), count - i);
}

template <class T> TARGET void add(const T *bias, int64_t count, float *to) {
    for (int64_t i = 0; bias && i < count; i += LANES)
        store_up_to(to + i, load_up_to(to + i, count - i) + load_up_to(bias + i, count - i), count - i);
}

template <class T> TARGET void rms_norm(const float *x, const T *weight, int64_t count, float eps, float *out) {
    F squares = set(0);
    for (int64_t i = 0; i < count; i += LANES) {
        F part = load_up_to(x + i, count - i);
        squares = fma(part, part, squares);
    }
    const F factor = set(1 / std::sqrt(sum(squares) / count + eps));
    for (int64_t i = 0; i < count; i += LANES) {
        F part = load_up_to(x + i, count - i) * factor * load_up_to(weight + i, count - i);
        store_up_to(out + i, part, count - i);
    }
}

// Of one row: the log of the sum of exp(logits), and the first of the largest.
template <class T> TARGET void total(const T *logits, int64_t columns, float *log_sum, int64_t *likeliest) {
    constexpr int64_t BLOCK = 1024;
    const T nothing = minus_infinity<T>();
    float top = -INFINITY;
    int64_t from = 0;
    for (int64_t block = 0; block < columns; block += BLOCK) {
        const int64_t end = std::min(block + BLOCK, columns);
        F high = set(-INFINITY);
        for (int64_t i = block; i < end; i += LANES) high = max(high, load_up_to(logits + i, end - i, nothing));
        const float highest = largest(high);
        if (highest > top) top = highest, from = block;
    }
    double all = 0;
    for (int64_t block = 0; block < columns; block += BLOCK) {
        const int64_t end = std::min(block + BLOCK, columns);
        F sums = set(0);
        for (int64_t i = block; i < end; i += LANES)
            sums = sums + exponential(load_up_to(logits + i, end - i, nothing) - set(top));
        all += sum(sums);
    }
    *log_sum = top + std::log(all);
    float values[BLOCK];
    const int64_t count = std::min(BLOCK, columns - from);
    convert(logits + from, count, values);
    *likeliest = std::min(from + (std::find(values, values + count, top) - values), columns - 1);
}

template <class T>
TARGET void totals(Team team, const void *logits, int64_t rows, int64_t columns, float *log_sum, int64_t *likeliest) {
    const Range share = team.share(rows);
    for (int64_t row = share.begin; row < share.end; row++)
        total(static_cast<const T *>(logits) + row * columns, columns, log_sum + row, likeliest + row);
}

// --- products -----------------------------------------------------------------------------------------------------------------

// Rows as a product reads them: each padded with zeros to `width`, whole steps.
template <class T> struct Rows {
    using Input = typename Dot<T>::Input;
    static int64_t floats(int64_t rows, int64_t in) { return rows * round_up(in, Dot<T>::STEP); }  // memory it needs
    int64_t width;
    Input *data;
    TARGET Rows(float *memory, int64_t in) : width(round_up(in, Dot<T>::STEP)), data(reinterpret_cast<Input *>(memory)) {}
    TARGET void put(int64_t row, const float *x, int64_t in) const {
        constexpr int STEP = Dot<T>::STEP;
        int64_t i = 0;
        for (; i + STEP <= in; i += STEP) Dot<T>::prepare(x + i, data + row * width + i);
        if (i == in) return;
        float rest[STEP] = {};
        std::memcpy(rest, x + i, (in - i) * sizeof(float));
        Dot<T>::prepare(rest, data + row * width + i);
    }
    void ready(int64_t) const {}  // all rows are there
};

// y[r, o] = x[r] . w[o] for R rows and O outputs.
template <class T, int R, int O>
INLINE void dots(const T *w, int64_t in, const typename Dot<T>::Input *x, int64_t width, float *y, int64_t stride) {
    constexpr int STEP = Dot<T>::STEP;
    F sums[R][O];
    for (auto &row : sums)
        for (auto &one : row) one = set(0);
    int64_t i = 0;
    for (; i + STEP <= in; i += STEP) {
        typename Dot<T>::Weights part[O];
#pragma GCC unroll 8
        for (int o = 0; o < O; o++) part[o] = Dot<T>::weights(w + o * in + i);
#pragma GCC unroll 8
        for (int o = 0; o < O; o++) _mm_prefetch(reinterpret_cast<const char *>(w + (O + o) * in + i), _MM_HINT_T0);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int o = 0; o < O; o++) sums[r][o] = Dot<T>::add(sums[r][o], part[o], x + r * width + i);
    }
    if (i < in)
        for (int o = 0; o < O; o++) {
            T rest[STEP] = {};
            std::memcpy(rest, w + o * in + i, (in - i) * sizeof(T));
            for (int r = 0; r < R; r++) sums[r][o] = Dot<T>::add(sums[r][o], Dot<T>::weights(rest), x + r * width + i);
        }
    for (int r = 0; r < R; r++)
        for (int o = 0; o < O; o++) y[r * stride + o] = sum(sums[r][o]);
}

template <class T, int R>
TARGET void outputs(const T *w, int64_t in, int64_t out, const typename Dot<T>::Input *x, int64_t width, float *y,
                    int64_t stride) {
    constexpr int O = outputs_at_once(R);
    int64_t o = 0;
    for (; o + O <= out; o += O) dots<T, R, O>(w + o * in, in, x, width, y + o, stride);
    for (; o < out; o++) dots<T, R, 1>(w + o * in, in, x, width, y + o, stride);
}

// y [rows, stride] = x W^T, for W [out, in]: blocks of outputs whose weights stay in the cache for all blocks of rows.
template <class T>
TARGET void product(const T *w, int64_t in, int64_t out, const Rows<T> &x, int64_t rows, float *y, int64_t stride) {
    constexpr decltype(&outputs<T, 1>) of_rows[] = {outputs<T, 1>, outputs<T, 2>, outputs<T, 3>, outputs<T, 4>,
                                                     outputs<T, 5>, outputs<T, 6>, outputs<T, 7>, outputs<T, 8>};
    const int64_t together = 8 * x.width * sizeof(*x.data) <= INPUTS_AT_ONCE ? 8 : 4, block = rows <= together ? out : 16;
    for (int64_t o = 0; o < out; o += block)
        for (int64_t r = 0; r < rows; r += together)
            of_rows[std::min(rows - r, together) - 1](w + o * in, in, std::min(block, out - o), x.data + r * x.width,
                                                        x.width, y + r * stride + o, stride);
}

template <class T>
TARGET void linear(Team team, const void *x, int64_t rows, int64_t in, int64_t out, Matrix m, void *y) {
    const T *weight = static_cast<const T *>(m.weight), *bias = static_cast<const T *>(m.bias);
    Scratch row(in), prepared(Rows<T>::floats(rows, in)), result(rows * CHUNK);
    const Rows<T> inputs(prepared, in);
    for (int64_t r = 0; r < rows; r++) {
        convert(static_cast<const T *>(x) + r * in, in, static_cast<float *>(row));
        inputs.put(r, row, in);
    }
    inputs.ready(rows);
    const auto [begin, end] = team.share(out);
    for (int64_t o = begin; o < end; o += CHUNK) {
        const int64_t count = std::min(CHUNK, end - o);
        product(weight + o * in, in, count, inputs, rows, result, CHUNK);
        for (int64_t r = 0; r < rows; r++) {
            add(bias ? bias + o : nullptr, count, result + r * CHUNK);
            convert(result + r * CHUNK, count, static_cast<T *>(y) + r * out + o);
        }
    }
}

// --- attention ----------------------------------------------------------------------------------------------------------------

// Scores [slots] -> probabilities, in place; `stride` is a multiple of LANES, behind `slots` is room.
template <class T> TARGET void softmax(float *scores, const T *mask, float scale, int64_t slots) {
    F top = set(-INFINITY), total = set(0);
    for (int64_t i = slots; i < round_up(slots, LANES); i++) scores[i] = -INFINITY;
    for (int64_t i = 0; i < slots; i += LANES) {
        F score = fma(load(scores + i), set(scale), load_up_to(mask + i, slots - i));
        store(scores + i, score);
        top = max(top, score);
    }
    top = set(largest(top));
    for (int64_t i = 0; i < slots; i += LANES) {
        F score = load(scores + i) - top, weight = zero_below(score, set(-87), exponential(score));
        store(scores + i, weight);
        total = total + weight;
    }
    const F factor = set(1 / sum(total));
    for (int64_t i = 0; i < slots; i += LANES) store(scores + i, load(scores + i) * factor);
}

// out[r] = sum over slots of probs[r, slot] values[slot], for R rows.
template <class T, int R>
TARGET void weigh(const float *probs, int64_t stride, const T *values, int64_t slots, int64_t size, float *const *out) {
    for (int64_t e = 0; e < size; e += 2 * LANES) {
        const int64_t left = size - e;
        F sums[R][2];
        for (auto &row : sums) row[0] = row[1] = set(0);
        for (int64_t s = 0; s < slots; s++) {
            F low = load_up_to(values + s * size + e, left);
            F high = left > LANES ? load_up_to(values + s * size + e + LANES, left - LANES) : set(0);
            for (int r = 0; r < R; r++) {
                F prob = set(probs[r * stride + s]);
                sums[r][0] = fma(prob, low, sums[r][0]);
                sums[r][1] = fma(prob, high, sums[r][1]);
            }
        }
        for (int r = 0; r < R; r++) {
            store_up_to(out[r] + e, sums[r][0], left);
            if (left > LANES) store_up_to(out[r] + e + LANES, sums[r][1], left - LANES);
        }
    }
}

// Heads begin .. end - 1 of a group, all n nodes of batch row b; q and out [B n, H, E].
template <class T>
TARGET void attend(const Shape &s, const Call &c, const T *cache, int64_t b, Range heads, const float *q, float *out,
                   float *memory) {
    const int64_t group = heads.begin / (s.heads / s.groups), stride = round_up(c.slots, LANES);
    const T *keys = cache + b * c.row + group * c.group + c.first * s.head, *values = keys + c.side;
    const Rows<T> rows(memory, s.head);
    float *scores = memory + Rows<T>::floats(ATTENDING, s.head), *goal[ATTENDING];
    const int64_t total = (heads.end - heads.begin) * c.n;
    for (int64_t from = 0; from < total; from += ATTENDING) {
        const int64_t count = std::min(ATTENDING, total - from);
        for (int64_t j = 0; j < count; j++) {
            const int64_t at = ((b * c.n + (from + j) % c.n) * s.heads + heads.begin + (from + j) / c.n) * s.head;
            rows.put(j, q + at, s.head);
            goal[j] = out + at;
        }
        rows.ready(count);
        product(keys, s.head, c.slots, rows, count, scores, stride);
        for (int64_t j = 0; j < count; j++) {
            const int64_t node = (from + j) % c.n;
            const T *mask = static_cast<const T *>(c.mask) + b * c.mask_row + node * c.slots;
            softmax(scores + j * stride, mask, s.scale, c.slots);
        }
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) weigh<T, 4>(scores + j * stride, stride, values, c.slots, s.head, goal + j);
        for (; j < count; j++) weigh<T, 1>(scores + j * stride, stride, values, c.slots, s.head, goal + j);
    }
}

// --- a layer ------------------------------------------------------------------------------------------------------------------

// One thread's part of the work. Shared by all: h [B n, D], q and attended [B n, H E], inner [B n, I]; the rest is its own.
template <class T> struct Worker {
    const Team team;
    const Shape &s;
    const Call &c;
    const int64_t rows, all_heads;
    float *h, *q, *attended, *inner;
    Scratch line, inputs, results, others, attention;

    TARGET Worker(Team team, const Shape &s, const Call &c, float *shared)
        : team(team), s(s), c(c), rows(c.batch * c.n), all_heads(s.heads * s.head), h(shared), q(h + rows * s.hidden),
          attended(q + rows * all_heads), inner(attended + rows * all_heads), line(2 * s.hidden),
          inputs(Rows<T>::floats(rows, std::max({2 * s.hidden, all_heads, s.inner}))),
          results(rows * std::max(CHUNK, s.head)), others(rows * CHUNK),
          attention(Rows<T>::floats(ATTENDING, s.head) + ATTENDING * round_up(c.slots, LANES)) {}

    static const T *of(const void *pointer) { return static_cast<const T *>(pointer); }

    // `results` [rows, stride] = x W^T + b for outputs o .. o + count - 1.
    TARGET void multiply(const Rows<T> &x, int64_t in, Matrix m, int64_t o, int64_t count, float *to, int64_t stride) {
        product(of(m.weight) + o * in, in, count, x, rows, to, stride);
        for (int64_t r = 0; m.bias && r < rows; r++) add(of(m.bias) + o, count, to + r * stride);
    }

    // The rows of x [rows, in] as they are.
    TARGET Rows<T> prepared(const float *x, int64_t in) {
        Rows<T> made(inputs, in);
        for (int64_t r = 0; r < rows; r++) made.put(r, x + r * in, in);
        made.ready(rows);
        return made;
    }

    // What attention reads: norm(h), or [norm(embedded), norm(h)] in a draft head.
    TARGET Rows<T> normed(const Layer &layer) {
        const bool both = layer.hidden_norm;
        Rows<T> made(inputs, both ? 2 * s.hidden : s.hidden);
        for (int64_t r = 0; r < rows; r++) {
            float *second = line + (both ? s.hidden : 0), *hidden = h + r * s.hidden;
            if (both) {
                convert(of(c.embedded) + r * s.hidden, s.hidden, second);
                rms_norm(second, of(layer.input_norm), s.hidden, s.eps, line);
            }
            if (both && s.norm_residual)
                std::memcpy(second, hidden, s.hidden * sizeof(float));
            else
                rms_norm(hidden, of(both ? layer.hidden_norm : layer.input_norm), s.hidden, s.eps, second);
            made.put(r, line, both ? 2 * s.hidden : s.hidden);
        }
        made.ready(rows);
        return made;
    }

    // Queries to `q`, keys and values into the cache, both with their positions: my share of the H + 2 G heads.
    TARGET void project(const Layer &layer, T *cache) {
        const int64_t in = layer.hidden_norm ? 2 * s.hidden : s.hidden;
        const Rows<T> x = normed(layer);
        const auto [begin, end] = team.share(s.heads + 2 * s.groups);
        for (int64_t unit = begin; unit < end; unit++) {
            const int64_t kind = unit < s.heads ? 0 : unit < s.heads + s.groups ? 1 : 2;
            const int64_t head = unit - (kind > 0) * s.heads - (kind > 1) * s.groups;
            multiply(x, in, kind == 0 ? layer.q : kind == 1 ? layer.k : layer.v, head * s.head, s.head, results, s.head);
            for (int64_t r = 0; r < rows; r++) {
                float *result = results + r * s.head;
                const void *norm = kind == 0 ? layer.q_norm : kind == 1 ? layer.k_norm : nullptr;
                if (norm) rms_norm(result, of(norm), s.head, s.eps, result);
                if (kind < 2) rotate(result, c.angles + r * 2 * s.head);
                if (kind == 0)
                    std::memcpy(q + (r * s.heads + head) * s.head, result, s.head * sizeof(float));
                else
                    convert(result, s.head,
                            cache + (kind - 1) * c.side + r / c.n * c.row + head * c.group + c.write[r] * s.head);
            }
        }
    }

    TARGET void rotate(float *x, const float *angles) {
        const int64_t half = s.head / 2;
        const float *cos = angles, *sin = angles + s.head;
        for (int64_t e = 0; e < half; e++) {
            const float low = x[e], high = x[e + half];
            x[e] = low * cos[e] + high * sin[e];
            x[e + half] = high * cos[e + half] + low * sin[e + half];
        }
    }

    // My share of the B H heads, those of one group together.
    TARGET void attend_all(const T *cache) {
        const auto [begin, end] = team.share(c.batch * s.heads);
        const int64_t together = s.heads / s.groups;
        for (int64_t unit = begin; unit < end;) {
            const int64_t b = unit / s.heads, head = unit % s.heads;
            const int64_t stop = std::min((head / together + 1) * together, head + end - unit);
            attend(s, c, cache, b, {head, stop}, q, attended, attention);
            unit += stop - head;
        }
    }

    // h += W x + b, my share of the D outputs.
    TARGET void add_to_hidden(const float *x, int64_t in, Matrix m) {
        const Rows<T> read = prepared(x, in);
        const auto [begin, end] = team.share(s.hidden);
        for (int64_t o = begin; o < end; o += CHUNK) {
            const int64_t count = std::min(CHUNK, end - o);
            multiply(read, in, m, o, count, results, CHUNK);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < count; i++) h[r * s.hidden + o + i] += s.residual * results[r * CHUNK + i];
        }
    }

    // inner = silu(gate x) * up x of x = norm(h), my share of the I outputs.
    TARGET void gate_up(const Layer &layer) {
        Rows<T> x(inputs, s.hidden);
        for (int64_t r = 0; r < rows; r++) {
            rms_norm(h + r * s.hidden, of(layer.post_norm), s.hidden, s.eps, line);
            x.put(r, line, s.hidden);
        }
        x.ready(rows);
        const auto [begin, end] = team.share(s.inner);
        for (int64_t o = begin; o < end; o += CHUNK) {
            const int64_t count = std::min(CHUNK, end - o);
            multiply(x, s.hidden, layer.gate, o, count, results, CHUNK);
            multiply(x, s.hidden, layer.up, o, count, others, CHUNK);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < count; i += LANES) {
                    F gate = load(results + r * CHUNK + i), up = load(others + r * CHUNK + i);
                    store_up_to(inner + r * s.inner + o + i, gate / (set(1) + exponential(set(0) - gate)) * up, count - i);
                }
        }
    }

    // The hidden states as tensors of the caller: rows begin .. end - 1 of h, normed where there is a norm.
    TARGET void write(const void *norm, void *to, int64_t stride, Range range) {
        for (int64_t r = range.begin; r < range.end; r++) {
            const float *row = h + r * s.hidden;
            if (norm) rms_norm(row, of(norm), s.hidden, s.eps, line);
            convert(norm ? static_cast<float *>(line) : row, s.hidden, static_cast<T *>(to) + r * stride);
        }
    }
};

template <class T> TARGET void layers(Team team, const Shape &s, const Call &c, float *shared) {
    Worker<T> mine(team, s, c, shared);
    const Range rows = team.share(mine.rows);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        float *row = mine.h + r * s.hidden;
        convert(static_cast<const T *>(c.input) + r * s.hidden, s.hidden, row);
        if (s.norm_residual) rms_norm(row, mine.of(c.layer[0].hidden_norm), s.hidden, s.eps, row);
    }
    team.meet();
    int64_t taps = 0, tap = 0;
    while (c.taps[taps] >= 0) taps++;
    for (int64_t i = 0; i < c.layers; i++) {
        T *cache = static_cast<T *>(c.cache[i]);
        for (; c.taps[tap] == i; tap++)
            mine.write(nullptr, static_cast<T *>(c.aux) + tap * s.hidden, taps * s.hidden, rows);
        mine.project(c.layer[i], cache);
        team.meet();
        mine.attend_all(cache);
        team.meet();
        mine.add_to_hidden(mine.attended, mine.all_heads, c.layer[i].o);
        team.meet();
        mine.gate_up(c.layer[i]);
        team.meet();
        mine.add_to_hidden(mine.inner, s.inner, c.layer[i].down);
        team.meet();
    }
    mine.write(c.final_norm, c.output, s.hidden, rows);
}
