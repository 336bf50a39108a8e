// ReLU, local response normalisation and a 3/2 max-pool in one pass over a channels-last activation, forward and backward.
// models/block.py has the contract and builds this file; models/lrn.py has the formula. Plain C at the border: no torch headers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Shape {
    int64_t images, height, width, channels;
    int64_t size, columns;
    float alpha, beta, k;

    int64_t pooled_height() const { return (height - 3) / 2 + 1; }
    int64_t pooled_width() const { return (width - 3) / 2 + 1; }
};

struct bfloat16 {
    uint16_t bits;
    operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};
using float32 = float;

inline void store(float32* at, float value) { *at = value; }

inline void store(bfloat16* at, float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    // To nearest, ties to even; a NaN must not round up to infinity.
    at->bits = value != value ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

// NaN stays NaN, so that a network that has diverged shows it.
inline float relu(float x) { return x < 0 ? 0 : x; }

// What one column's channels need; `padded` keeps half a window of zeros on both sides.
struct Scratch {
    int64_t channels, half;
    std::vector<float> padded, sums, scales;

    Scratch(const Shape& shape)
        : channels(shape.channels / shape.columns), half(shape.size / 2), padded(channels + 2 * half), sums(channels), scales(channels) {}

    void sum_windows() {
        const float* from = padded.data();
        float* to = sums.data();
        if (half == 2) {
            // The paper's window, spelled out: one pass instead of five.
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) to[c] = from[c] + from[c + 1] + from[c + 2] + from[c + 3] + from[c + 4];
            return;
        }
        std::memcpy(to, from, channels * sizeof(float));
        for (int64_t j = 1; j <= 2 * half; j++)
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) to[c] += from[c + j];
    }

    // sums = the denominators d of relu(x), scales = d ^ -beta.
    template <typename T>
    void denominators(const T* x, const Shape& shape) {
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) padded[half + c] = relu(x[c]) * relu(x[c]);
        sum_windows();
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) sums[c] = shape.k + shape.alpha * sums[c];
        if (shape.beta == 0.75f) {
            // Two square roots vectorise on every CPU; a power does not.
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                const float root = 1 / std::sqrt(sums[c]);
                scales[c] = root * std::sqrt(root);
            }
        } else {
            for (int64_t c = 0; c < channels; c++) scales[c] = std::pow(sums[c], -shape.beta);
        }
    }

    // slope = dL/dx from the gradient by the normalised activation, which is zero nearly everywhere but at winners.
    template <typename T>
    void backward(const float* gradient, const T* x, T* slope, const Shape& shape) {
        denominators(x, shape);
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) padded[half + c] = gradient[c] * relu(x[c]) * scales[c] / sums[c];
        sum_windows();
        const float factor = 2 * shape.alpha * shape.beta;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) {
            const float value = gradient[c] * scales[c] - factor * relu(x[c]) * sums[c];
            store(slope + c, x[c] <= 0 ? 0 : value);
        }
    }
};

template <typename T>
void normalise_row(const T* x, float* y, Scratch& scratch, const Shape& shape) {
    for (int64_t at = 0; at < shape.width * shape.channels; at += scratch.channels) {
        scratch.denominators(x + at, shape);
#pragma omp simd
        for (int64_t c = 0; c < scratch.channels; c++) y[at + c] = relu(x[at + c]) * scratch.scales[c];
    }
}

// One row of pooled places and winners from three rows of normalised activations; the first of equals and the last NaN win, as in torch.
template <typename T>
void pool_row(const float* const rows[3], T* pooled, uint8_t* winners, const Shape& shape) {
    std::vector<float> best(shape.channels);
    std::vector<int32_t> place(shape.channels);
    for (int64_t q = 0; q < shape.pooled_width(); q++) {
        const int64_t left = 2 * q * shape.channels;
        std::memcpy(best.data(), rows[0] + left, shape.channels * sizeof(float));
        std::memset(place.data(), 0, shape.channels * sizeof(int32_t));
        for (int32_t tap = 1; tap < 9; tap++) {
            const float* candidate = rows[tap / 3] + left + tap % 3 * shape.channels;
#pragma omp simd
            for (int64_t c = 0; c < shape.channels; c++) {
                const bool wins = candidate[c] > best[c] || candidate[c] != candidate[c];
                best[c] = wins ? candidate[c] : best[c];
                place[c] = wins ? tap : place[c];
            }
        }
        for (int64_t c = 0; c < shape.channels; c++) store(pooled + q * shape.channels + c, best[c]);
        for (int64_t c = 0; c < shape.channels; c++) winners[q * shape.channels + c] = uint8_t(place[c]);
    }
}

// Add what pooled row p gives to its row of places `down` (0 to 2) below 2p.
template <typename T>
void unpool_row(const T* gradient, const uint8_t* winners, int down, float* row, const Shape& shape) {
    for (int64_t q = 0; q < shape.pooled_width(); q++, gradient += shape.channels, winners += shape.channels)
        for (int right = 0; right < 3; right++) {
            float* to = row + (2 * q + right) * shape.channels;
            const int tap = 3 * down + right;
#pragma omp simd
            for (int64_t c = 0; c < shape.channels; c++) to[c] += winners[c] == tap ? float(gradient[c]) : 0;
        }
}

template <typename T>
void forward(const T* x, T* pooled, uint8_t* winners, const Shape& shape, int threads) {
    const int64_t row = shape.width * shape.channels, pooled_row = shape.pooled_width() * shape.channels;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(shape);
        std::vector<float> ring(3 * row);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < shape.images; n++)
            for (int64_t h = 0; h < 2 * shape.pooled_height() + 1; h++) {
                normalise_row(x + (n * shape.height + h) * row, &ring[h % 3 * row], scratch, shape);
                if (h < 2 || h % 2) continue;
                const float* const rows[3] = {&ring[(h - 2) % 3 * row], &ring[(h - 1) % 3 * row], &ring[h % 3 * row]};
                const int64_t to = (n * shape.pooled_height() + h / 2 - 1) * pooled_row;
                pool_row(rows, pooled + to, winners + to, shape);
            }
    }
}

template <typename T>
void backward(const T* gradient, const T* x, const uint8_t* winners, T* slope, const Shape& shape, int threads) {
    const int64_t row = shape.width * shape.channels, pooled_row = shape.pooled_width() * shape.channels;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(shape);
        std::vector<float> unpooled(row);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < shape.images; n++)
            for (int64_t h = 0; h < shape.height; h++) {
                std::fill(unpooled.begin(), unpooled.end(), 0.0f);
                for (int64_t p = h < 2 ? 0 : (h - 1) / 2; p <= h / 2 && p < shape.pooled_height(); p++) {
                    const int64_t from = (n * shape.pooled_height() + p) * pooled_row;
                    unpool_row(gradient + from, winners + from, int(h - 2 * p), unpooled.data(), shape);
                }
                const int64_t begin = (n * shape.height + h) * row;
                for (int64_t at = 0; at < row; at += scratch.channels)
                    scratch.backward(&unpooled[at], x + begin + at, slope + begin + at, shape);
            }
    }
}

}  // namespace

#define EXPORT(T)                                                                                                     \
    void forward_##T(const T* x, T* pooled, uint8_t* winners, const Shape* shape, int threads) {                      \
        forward(x, pooled, winners, *shape, threads);                                                                 \
    }                                                                                                                 \
    void backward_##T(const T* gradient, const T* x, const uint8_t* winners, T* slope, const Shape* shape, int threads) { \
        backward(gradient, x, winners, slope, *shape, threads);                                                       \
    }

extern "C" { EXPORT(float32) EXPORT(bfloat16) }
