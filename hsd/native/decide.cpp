// Draws by inversion, and whole decisions about trees, on a CPU: hsd/sampling.py and hsd/verify.py without tensors between.
//
// For a tree of a few nodes those are some hundred operators on a handful of numbers. Here a node's children are visited
// in the order of the recursion in hsd/verifiers/residuals.py, which says what the names mean; whatever is summed over
// tokens is summed in float64. hsd/native/__init__.py calls this.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr double BELOW_ONE = 1 - 1.0 / (int64_t(1) << 53);  // the largest float64 below 1
constexpr int64_t BLOCK = 256;                              // weights that are passed over at once
constexpr int64_t WORTH_THREADS = 1 << 15;                  // numbers that one thread reads faster than two wake up

template <class T> double sum(const T *weights, int64_t count) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; i++) total += weights[i];
    return total;
}

// The first column whose running sum exceeds this share of the total; one of weight 0 never does.
template <class T> int64_t invert(const T *weights, int64_t count, double share) {
    std::vector<double> mass;
    double total = 0;
    for (int64_t first = 0; first < count; first += BLOCK) {
        mass.push_back(sum(weights + first, std::min(BLOCK, count - first)));
        total += mass.back();
    }
    const double point = share * BELOW_ONE * total;
    double running = 0;
    int64_t found = count - 1;  // the answer where a sum is not a number
    for (int64_t block = 0; block < static_cast<int64_t>(mass.size()); running += mass[block++]) {
        if (!(running + mass[block] > point)) continue;
        for (int64_t i = block * BLOCK; i < std::min(count, (block + 1) * BLOCK); i++) {
            if (!(weights[i] > 0)) continue;
            found = i, running += weights[i];  // the last one, where these add up to less than the block's mass
            if (running > point) break;
        }
        break;
    }
    return found;
}

}  // namespace

enum { TOKEN_WISE, BRANCH_WISE, GREEDY };

struct Trees {  // see `hsd.TreeBatch` and `hsd.Decision`; everything is contiguous but uniforms
    int64_t batch, nodes, slots, proposals, columns, vocabulary;  // B, N, K + 1, M, Vd, V
    int64_t rule;                                                 // which of the rules below
    const int64_t *tokens, *parents, *depths, *rows;              // [B, N]; rows of d: of a point mass -1, of padding -2
    const void *target, *d;                                       // [B, N, V], [B, M, Vd]
    const int64_t *support;                                       // [Vd]; null: all tokens
    const double *uniforms;                                       // [B, 2]
    int64_t stride;                                               // of uniforms over B
    int64_t *path, *accepted, *token;                             // [B, K + 1], [B], [B]
    void *expected, *stop;                                        // [B], [B, N]
};

namespace {

template <class T> class Tree {
  public:
    Tree(const Trees &trees, int64_t row)
        : all(trees), count(trees.nodes), tokens(trees.tokens + row * count), parents(trees.parents + row * count),
          rows(trees.rows + row * count),
          target(static_cast<const T *>(trees.target) + row * count * trees.vocabulary),
          d(static_cast<const T *>(trees.d) + row * trees.proposals * trees.columns), column(count, -1),
          weight(count, 1), before(count, 1), left(count, 1), measure(trees.columns) {
        if (std::any_of(rows, rows + count, [](int64_t one) { return one >= 0; })) find_columns();
        for (int64_t v = 0; v < count; v++) try_children(v);
    }

    // P(the accepted path ends at each node).
    std::vector<double> stop() const { return all.rule == BRANCH_WISE ? stop_by_branches() : stop_by_tokens(); }

    // One draw from what the children of node v leave of its distribution.
    int64_t bonus(int64_t v, double uniform) const {
        const T *p = target + v * all.vocabulary;
        std::vector<T> a(p, p + all.vocabulary);
        const double w = start(v);
        for (auto &mass : a) mass *= w;
        for (int64_t i : children(v)) {
            if (rows[i] == -1) a[tokens[i]] = 0;
            if (rows[i] < 0) continue;
            const T *share = d + rows[i] * all.columns;
            for (int64_t c = 0; c < all.columns; c++) {
                T &mass = a[all.support ? all.support[c] : c];
                mass = std::max<T>(mass - std::max(before[i], 0.) * share[c], 0);
            }
        }
        const bool nothing = !(sum(a.data(), all.vocabulary) > std::numeric_limits<T>::min());
        return invert(nothing ? p : a.data(), all.vocabulary, uniform);  // then v is the stop with probability 0
    }

  private:
    double start(int64_t v) const { return all.rule == BRANCH_WISE ? weight[v] : 1; }

    std::vector<int64_t> children(int64_t v) const {
        std::vector<int64_t> found;
        for (int64_t i = v + 1; i < count; i++)
            if (parents[i] == v) found.push_back(i);
        return found;
    }

    void find_columns() {  // of the nodes' tokens among the columns of d
        if (!all.support) return column.assign(tokens, tokens + count);
        static thread_local std::vector<uint8_t> wanted;  // false between calls
        wanted.resize(std::max<size_t>(wanted.size(), all.vocabulary));
        for (int64_t v = 0; v < count; v++) wanted[tokens[v]] = 1;
        for (int64_t c = 0; c < all.columns; c++)
            if (wanted[all.support[c]])
                for (int64_t v = 0; v < count; v++)
                    if (tokens[v] == all.support[c]) column[v] = c;
        for (int64_t v = 0; v < count; v++) wanted[tokens[v]] = 0;
    }

    // Weights of v's children, and what is left of v after them.
    void try_children(int64_t v) {
        const auto found = children(v);
        const T *p = target + v * all.vocabulary;
        bool listed = false;  // whether `measure` holds a on the columns of d: where a child is sampled
        for (int64_t i : found) listed |= rows[i] >= 0;
        for (int64_t c = 0; c < all.columns && listed; c++)
            measure[c] = start(v) * p[all.support ? all.support[c] : c];
        for (int64_t i : found) {
            double value = listed && column[i] >= 0 ? measure[column[i]] : start(v) * p[tokens[i]], taken = 0, di = 1;
            for (int64_t j : found)
                if (j < i && rows[j] == -1 && tokens[j] == tokens[i]) value = 0;
            before[i] = left[v];
            if (rows[i] >= 0) {
                di = column[i] < 0 ? 0 : d[rows[i] * all.columns + column[i]];
                taken = take(d + rows[i] * all.columns, left[v]);
            } else if (rows[i] == -1) {
                taken = value;
                if (listed && column[i] >= 0) measure[column[i]] = 0;
            } else {
                value = 0;
            }
            weight[i] = std::min(value / std::max<double>(left[v] * di, std::numeric_limits<T>::min()), 1.);  // NaN stays
            left[v] -= taken;
        }
    }

    // The mass that a sampled child takes: sum of min(a, D d); a <- max(a - D d, 0).
    double take(const T *share, double before_it) {
        T *a = measure.data();
        const T scale = std::max(before_it, 0.);
        double taken = 0;
#pragma omp simd reduction(+ : taken)
        for (int64_t c = 0; c < all.columns; c++) {
            const T mine = std::min<T>(a[c], scale * share[c]);
            a[c] -= mine;
            taken += mine;
        }
        return taken;
    }

    std::vector<double> stop_by_branches() const {  // h(v) times the product of 1 - h over all before v in post-order
        std::vector<double> found(count);
        double reach = 1;
        visit(0, reach, found);
        return found;
    }

    void visit(int64_t v, double &reach, std::vector<double> &found) const {
        for (int64_t i : children(v)) visit(i, reach, found);
        const double rest = std::max<double>(left[v], std::numeric_limits<T>::min());
        const double accept = std::max(1 - (1 - weight[v]) / rest, 0.);
        found[v] = accept * reach;
        reach *= 1 - accept;
    }

    std::vector<double> stop_by_tokens() const {  // reached, and none of the children accepted
        std::vector<double> reach(count, 1), found(count);
        for (int64_t v = 0; v < count; v++) {
            double none = reach[v];
            for (int64_t i : children(v)) {
                reach[i] = none * weight[i];
                none *= 1 - weight[i];
            }
            found[v] = none;
        }
        return found;
    }

    const Trees &all;
    const int64_t count;
    const int64_t *tokens, *parents, *rows;
    const T *target, *d;
    std::vector<int64_t> column;
    std::vector<double> weight, before, left;
    std::vector<T> measure;
};

bool indices_are_sound(const Trees &trees) {
    for (int64_t i = 0; i < trees.batch * trees.nodes; i++) {
        const int64_t node = i % trees.nodes;
        if (trees.tokens[i] < 0 || trees.tokens[i] >= trees.vocabulary || trees.rows[i] >= trees.proposals) return false;
        if (trees.parents[i] >= node || trees.parents[i] < (node ? 0 : -1)) return false;
        if (trees.depths[i] != (node ? trees.depths[i - node + trees.parents[i]] + 1 : 0)) return false;
        if (trees.depths[i] >= trees.slots) return false;
    }
    for (int64_t c = 0; c < trees.columns && trees.support; c++)
        if (trees.support[c] < 0 || trees.support[c] >= trees.vocabulary) return false;
    return true;
}

struct Outcome {
    std::vector<double> stop;
    int64_t node, token;
};

template <class T> Outcome drawn(const Trees &trees, int64_t row) {
    const Tree<T> tree(trees, row);
    const auto stop = tree.stop();
    const double *uniform = trees.uniforms + row * trees.stride;
    const int64_t node = invert(stop.data(), trees.nodes, uniform[0]);
    return {stop, node, tree.bonus(node, uniform[1])};
}

template <class T> int64_t mode(const T *p, int64_t count) {
    T largest = p[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 1; i < count; i++) largest = std::max(largest, p[i]);
    return std::find_if(p, p + count - 1, [=](T value) { return !(value < largest); }) - p;
}

template <class T> Outcome longest_greedy_path(const Trees &trees, int64_t row) {  // see hsd/verifiers/greedy.py
    const int64_t count = trees.nodes, first = row * count;
    const T *p = static_cast<const T *>(trees.target) + first * trees.vocabulary;
    std::vector<int64_t> following(count, -1);  // y of the nodes that are right
    int64_t deepest = 0;
    for (int64_t v = 0; v < count; v++) {
        const bool matches = v == 0 || following[trees.parents[first + v]] == trees.tokens[first + v];
        if (!matches || (v > 0 && trees.rows[first + v] < -1)) continue;
        following[v] = mode(p + v * trees.vocabulary, trees.vocabulary);
        if (trees.depths[first + v] > trees.depths[first + deepest]) deepest = v;
    }
    std::vector<double> stop(count, 0);
    stop[deepest] = 1;
    return {stop, deepest, following[deepest]};
}

template <class T> void decide(const Trees &trees, int64_t row) {
    const auto [stop, last, token] = trees.rule == GREEDY ? longest_greedy_path<T>(trees, row) : drawn<T>(trees, row);
    trees.token[row] = token;
    double expected = 0;
    for (int64_t v = 0; v < trees.nodes; v++) {
        static_cast<T *>(trees.stop)[row * trees.nodes + v] = stop[v];
        expected += stop[v] * trees.depths[row * trees.nodes + v];
    }
    static_cast<T *>(trees.expected)[row] = expected;
    int64_t *path = trees.path + row * trees.slots;
    std::fill(path, path + trees.slots, -1);
    trees.accepted[row] = trees.depths[row * trees.nodes + last];
    for (int64_t v = last; v >= 0; v = trees.parents[row * trees.nodes + v]) path[trees.depths[row * trees.nodes + v]] = v;
}

}  // namespace

extern "C" void hsd_draw(int64_t threads, int64_t bytes, const void *weights, int64_t rows, int64_t columns,
                         const double *uniforms, int64_t *found) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1 && rows * columns > WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++)
        found[row] = bytes == 4 ? invert(static_cast<const float *>(weights) + row * columns, columns, uniforms[row])
                                : invert(static_cast<const double *>(weights) + row * columns, columns, uniforms[row]);
}

// Returns 1, having done nothing, where an index of the trees points nowhere.
extern "C" int64_t hsd_decide(int64_t threads, int64_t bytes, const Trees *trees) {
    if (!indices_are_sound(*trees)) return 1;
    const bool shared = threads > 1 && trees->batch > 1 && trees->batch * trees->nodes * trees->vocabulary > WORTH_THREADS;
#pragma omp parallel for num_threads(threads) if (shared)
    for (int64_t row = 0; row < trees->batch; row++) bytes == 4 ? decide<float>(*trees, row) : decide<double>(*trees, row);
    return 0;
}
