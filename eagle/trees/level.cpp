// One level of hybrid trees on a CPU: what `pick` of eagle/trees/hybrid.py computes with tensors, in one call per row.
//
// A level is a choice among a handful of candidates. Here every frontier node keeps its likeliest tokens in one pass over
// q, and the names are those of hybrid.py and level_budget.py, which derive what is computed. eagle/trees/native_level.py
// calls this.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

struct Frontier {  // of one row of a batch
    int64_t n, columns, most;          // nodes, Vd, nodes that the new level may have
    int64_t left, below;               // nodes that the tree has left; levels that may follow
    double beta;
    const void *q, *believed, *reach;  // [n, Vd]; the same sharpened; [n], negative at padding
    const float *typical;              // [64]: F of the levels below, see level_budget.py
};

struct Level {  // of one row: what is chosen. There is room for `most` nodes, for n of them that are sampled
    int64_t *column, *parent;  // draft token, 0 where it is to be sampled; index in the frontier
    int64_t size, sampled;     // nodes; how many of them are sampled children: the first ones
    void *outside;             // [sampled, Vd]: q of the parent of each of those outside its top-k children
};

namespace {

constexpr double TINY_OUTSIDE = 1e-20, TINY = 1e-30, STEP = 0.1;
constexpr int64_t STEPS = 64;

struct Candidate {
    double value;
    int64_t number;  // k n + v: the k-th child of frontier node v, its sampled one where k = 0
};

template <class T> using Likeliest = std::vector<std::pair<T, int64_t>>;  // (q, column), best first

template <class T> Likeliest<T> likeliest(const T *q, int64_t columns, int64_t count) {
    Likeliest<T> found;  // a heap, the worst on top
    const auto better = [](const auto &a, const auto &b) { return a.first > b.first || (a.first == b.first && a.second < b.second); };
    for (int64_t c = 0; c < columns; c++) {
        if (static_cast<int64_t>(found.size()) == count) {
            if (!(q[c] > found.front().first)) continue;
            std::pop_heap(found.begin(), found.end(), better);
            found.pop_back();
        }
        found.emplace_back(q[c] > 0 ? q[c] : 0, c);  // not a number: 0
        std::push_heap(found.begin(), found.end(), better);
    }
    std::sort_heap(found.begin(), found.end(), better);
    return found;
}

// The largest number of the best candidates whose trees fit into what is left; at least one.
int64_t level_size(const std::vector<Candidate> &best, const Frontier &f) {
    const int64_t most = std::min<int64_t>(best.size(), f.left);
    if (f.below == 0) return most;
    std::vector<int64_t> place;
    for (const auto &candidate : best) place.push_back(std::floor(std::log(std::max(candidate.value, TINY)) / STEP));
    int64_t found = 0;
    for (size_t w = 0; w < best.size(); w++) {
        double wanted = 0;
        for (size_t i = 0; i <= w; i++) wanted += f.typical[std::clamp<int64_t>(place[i] - place[w], 0, STEPS - 1)];
        found += wanted <= f.left;
    }
    return std::min(std::max<int64_t>(found, 1), most);
}

// A node's sampled child, then its likeliest tokens, with what each adds to those before it.
template <class T>
void add_candidates(const Frontier &f, int64_t v, double reach, const T *q, const Likeliest<T> &top,
                    std::vector<Candidate> &candidates) {
    double squares = 0, mass = 0, spread = 0, missed = 1;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < f.columns; c++) squares += static_cast<double>(q[c]) * q[c];
    for (size_t k = 0; k <= top.size(); k++) {
        if (k > 0) mass += top[k - 1].first, spread += top[k - 1].first * (1. - top[k - 1].first);
        const double rest = std::max(1 - mass, 0.) * std::max(1 - squares - spread, 0.) * (1 - f.beta);
        candidates.push_back({missed > rest && reach > 0 ? (missed - rest) * reach : 0, static_cast<int64_t>(k) * f.n + v});
        missed = rest;
    }
}

// q of a frontier node outside its top-k children, renormalised.
template <class T> void fill_outside(const T *q, int64_t columns, const Level &level, T *outside, int64_t v) {
    std::copy(q, q + columns, outside);
    for (int64_t i = level.sampled; i < level.size; i++)
        if (level.parent[i] == v) outside[level.column[i]] = 0;
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < columns; c++) total += outside[c] += static_cast<T>(TINY_OUTSIDE);
    for (int64_t c = 0; c < columns; c++) outside[c] /= static_cast<T>(total);
}

template <class T> void choose(const Frontier &f, Level &level) {
    const T *q = static_cast<const T *>(f.q), *believed = static_cast<const T *>(f.believed);
    const T *reach = static_cast<const T *>(f.reach);
    const int64_t count = std::min(f.most, f.columns);
    std::vector<Likeliest<T>> top(f.n);
    std::vector<Candidate> best;
    for (int64_t v = 0; v < f.n; v++) {
        if (reach[v] < 0) continue;
        top[v] = likeliest(believed + v * f.columns, f.columns, count);
        add_candidates(f, v, reach[v], believed + v * f.columns, top[v], best);
    }
    std::sort(best.begin(), best.end(), [](const Candidate &a, const Candidate &b) {
        return a.value > b.value || (a.value == b.value && a.number < b.number);
    });
    best.resize(std::min<size_t>(best.size(), f.most));
    best.resize(level_size(best, f));
    std::sort(best.begin(), best.end(), [](const Candidate &a, const Candidate &b) { return a.number < b.number; });
    level.size = best.size(), level.sampled = 0;
    for (int64_t i = 0; i < level.size; i++) {
        const int64_t k = best[i].number / f.n, v = best[i].number % f.n;
        level.parent[i] = v;
        level.column[i] = k ? top[v][k - 1].second : 0;
        level.sampled += k == 0;
    }
    for (int64_t i = 0; i < level.sampled; i++)
        fill_outside(q + level.parent[i] * f.columns, f.columns, level, static_cast<T *>(level.outside) + i * f.columns, level.parent[i]);
}

// Reach of the level's nodes, all tokens being known: u f(x) of a sampled child, q(x) of another.
template <class T> void follow(const Frontier &f, const Level &level, T *found) {
    const T *believed = static_cast<const T *>(f.believed), *reach = static_cast<const T *>(f.reach);
    std::vector<double> outside(f.n, 1);
    for (int64_t i = level.sampled; i < level.size; i++)
        outside[level.parent[i]] -= believed[level.parent[i] * f.columns + level.column[i]];
    for (int64_t i = 0; i < level.size; i++) {
        const int64_t v = level.parent[i];
        const double qx = believed[v * f.columns + level.column[i]], u = std::max(outside[v], 0.);
        found[i] = reach[v] * (i < level.sampled ? u * (1 - (1 - f.beta) * u * (1 - qx)) : qx);
    }
}

}  // namespace

extern "C" void hybrid_level(int64_t bytes, const Frontier *frontier, Level *level) {
    bytes == 4 ? choose<float>(*frontier, *level) : choose<double>(*frontier, *level);
}

extern "C" void hybrid_reach(int64_t bytes, const Frontier *frontier, const Level *level, void *found) {
    bytes == 4 ? follow(*frontier, *level, static_cast<float *>(found))
               : follow(*frontier, *level, static_cast<double *>(found));
}
