// Attention of one step per environment against the cache on CPUs, as `reference.attend_step` defines it. `cpu.py`
// compiles it for one head width, HEAD_WIDTH. It reads the slots from the first to the last that the step sees, so one
// program serves a context of any length: the scores of these keys, their softmax, and the weighted sum of the values.

#include "cpu_vectors.h"

#include <utility>

namespace {

constexpr int kRow = D < 8 || kLanes < 8 ? 4 : 8;  // numbers of a key or value in one vector; wider ones add up slower
constexpr int kParts = D / kRow;
constexpr int kChains = kParts < 4 ? 4 : kParts < 8 ? 2 : 1;  // sums of values that do not wait for each other
constexpr int kAhead = 4096 / sizeof(float) / D;  // keys or values that are fetched ahead
constexpr int64_t kShared = 1 << 22;         // bytes of keys and values from which on threads share the heads

typedef float Row __attribute__((vector_size(4 * kRow)));
typedef int32_t RowInt __attribute__((vector_size(4 * kRow)));

template <typename T>
inline T Load(const float* x) {
  T value;
  std::memcpy(&value, x, sizeof(T));
  return value;
}

// Returns the sum of the blocks of kHalf lanes in pairs: those of a in the lower lanes of each pair of blocks, those of b
// in the upper lanes.
template <int kHalf, size_t... I>
inline Row AddPairs(Row a, Row b, std::index_sequence<I...>) {
#ifdef __clang__
  const Row low = __builtin_shufflevector(a, b, ((I & kHalf) ? kRow + (I & ~kHalf) : I)...);
  const Row high = __builtin_shufflevector(a, b, ((I & kHalf) ? kRow + I : (I | kHalf))...);
#else
  const Row low = __builtin_shuffle(a, b, RowInt{int((I & kHalf) ? kRow + (I & ~kHalf) : I)...});
  const Row high = __builtin_shuffle(a, b, RowInt{int((I & kHalf) ? kRow + I : (I | kHalf))...});
#endif
  return low + high;
}

// Sets lane l of the first of kRow vectors to the sum of vector l.
template <int kHalf>
inline void AddLanes(Row* x) {
#pragma GCC unroll 8
  for (int i = 0; i < kHalf; ++i) x[i] = AddPairs<kHalf>(x[i], x[i + kHalf], std::make_index_sequence<kRow>());
  if constexpr (kHalf > 1) AddLanes<kHalf / 2>(x);
}

// Returns the sum, or the largest, of the lanes of a vector. Halves are combined, so few operations wait for each other.
template <bool kLargest, typename T>
inline float Reduce(T x) {
  constexpr int kCount = sizeof(T) / sizeof(float);
  float lane[kCount];
  std::memcpy(lane, &x, sizeof(T));
#pragma GCC unroll 4
  for (int half = kCount / 2; half; half /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) {
      const float a = lane[l], b = lane[l + half];
      lane[l] = kLargest ? (a < b ? b : a) : a + b;
    }
  }
  return lane[0];
}

// Fetches kRow keys or values.
inline void Fetch(const float* x) {
#pragma GCC unroll 8
  for (int line = 0; line < kRow * D; line += 16) __builtin_prefetch(x + line);
}

// Computes the scores of kRow keys [kRow, D].
inline void Scores(const Row* query, const float* k, float* scores) {
  Row sum[kRow];
#pragma GCC unroll 16
  for (int r = 0; r < kRow; ++r) {
    sum[r] = query[0] * Load<Row>(k + r * D);
    for (int part = 1; part < kParts; ++part) sum[r] += query[part] * Load<Row>(k + r * D + part * kRow);
  }
  AddLanes<kRow / 2>(sum);
  std::memcpy(scores, &sum[0], sizeof(Row));
}

// Computes out [D] of one head from `count` keys and values. episodes: [count], of which the step sees those of `episode`,
// or null if it sees all. sink_k, sink_v: [D], or null without a sink. scores: room for `count` numbers rounded up to kLanes.
void Attend(const float* q, const float* k, const float* v, int count, const int32_t* episodes, int32_t episode,
            const float* sink_k, const float* sink_v, float* scores, float* out) {
  Row query[kParts];
  for (int part = 0; part < kParts; ++part) query[part] = Load<Row>(q + part * kRow) * kLog2E;
  int j = 0;
  for (; j + kRow <= count; j += kRow) {
    Fetch(k + (size_t)(j + kAhead) * D);
    Scores(query, k + (size_t)j * D, scores + j);
  }
  if (j < count) {
    float last[kRow * D] = {};
    std::memcpy(last, k + (size_t)j * D, sizeof(float) * D * (count - j));
    Scores(query, last, scores + j);
  }
  for (int i = 0; episodes && i < count; ++i) scores[i] = episodes[i] == episode ? scores[i] : kMasked;
  const int padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + count, scores + padded, kMasked);
  float sink_score = kMasked;
  if (sink_k) {
    Row product = query[0] * Load<Row>(sink_k);
    for (int part = 1; part < kParts; ++part) product += query[part] * Load<Row>(sink_k + part * kRow);
    sink_score = Reduce<false>(product);
  }
  Vec tops = All(sink_score), totals = {};
  for (int i = 0; i < padded; i += kLanes) tops = Max(tops, Load<Vec>(scores + i));
  const float top = Reduce<true>(tops);
  for (int i = 0; i < padded; i += kLanes) {
    const Vec weight = Exp2(Load<Vec>(scores + i) - top);
    std::memcpy(scores + i, &weight, sizeof(Vec));
    totals += weight;
  }
  const float sink_weight = sink_k ? Exp2(All(sink_score - top))[0] : 0.0f;
  const float scale = 1.0f / (Reduce<false>(totals) + sink_weight);
  Row sum[kChains][kParts] = {};
  j = 0;
  for (; j + kRow <= count; j += kRow) {
    Fetch(v + (size_t)(j + kAhead) * D);
#pragma GCC unroll 8
    for (int r = 0; r < kRow; ++r) {
      const float* value = v + (size_t)(j + r) * D;
      for (int part = 0; part < kParts; ++part) {
        sum[r % kChains][part] += Load<Row>(value + part * kRow) * scores[j + r];
      }
    }
  }
  for (; j < count; ++j) {
    for (int part = 0; part < kParts; ++part) sum[0][part] += Load<Row>(v + (size_t)j * D + part * kRow) * scores[j];
  }
  for (int part = 0; part < kParts; ++part) {
    for (int chain = 1; chain < kChains; ++chain) sum[0][part] += sum[chain][part];
    if (sink_k) sum[0][part] += Load<Row>(sink_v + part * kRow) * sink_weight;
    sum[0][part] *= scale;
    std::memcpy(out + part * kRow, &sum[0][part], sizeof(Row));
  }
}

using Numbers = ffi::Buffer<ffi::F32>;  // [B, H, D] or [B, H, S, D], with axes of vmap before B
using Integers = ffi::Buffer<ffi::S32>;

// seen: [B, 3], the slots [first, last) that a step reads, and its episode. episodes: [B, S] if it sees only the slots of
// its episode among them, else [B, 0].
ffi::Error StepAll(ffi::ThreadPool pool, bool has_sink, Numbers q, Numbers k, Numbers v, Numbers sink_k, Numbers sink_v,
                   Integers seen, Integers episodes, ffi::Result<Numbers> out) {
  const auto shape = k.dimensions();
  const int slots = shape[shape.size() - 2], heads = shape[shape.size() - 3];
  const int items = q.element_count() / D;
  const auto head = [&](int item) {
    const int environment = item / heads;
    const int32_t* range = seen.typed_data() + 3 * environment;
    const int last = std::clamp(range[1], 0, slots), first = std::clamp(range[0], 0, last);
    const int32_t* slot_episodes =
        episodes.element_count() ? episodes.typed_data() + (size_t)environment * slots + first : nullptr;
    thread_local std::vector<float> scores;
    if (scores.size() < size_t(last - first + kLanes)) scores.resize(last - first + kLanes);
    const size_t at = (size_t)item * D, keys = ((size_t)item * slots + first) * D;
    const float *sink = has_sink ? sink_k.typed_data() + at : nullptr, *sink_value = sink_v.typed_data() + at;
    Attend(q.typed_data() + at, k.typed_data() + keys, v.typed_data() + keys, last - first, slot_episodes, range[2], sink,
           sink_value, scores.data(), out->typed_data() + at);
  };
  int64_t bytes = 0;
  for (int b = 0; b < items / heads; ++b) {
    bytes += 2 * sizeof(float) * D * heads * (int64_t)(seen.typed_data()[3 * b + 1] - seen.typed_data()[3 * b]);
  }
  if (bytes >= kShared) {
    Share(pool, items, head);
  } else {
    for (int item = 0; item < items; ++item) head(item);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(step, StepAll,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("has_sink").Arg<Numbers>()
                                  .Arg<Numbers>().Arg<Numbers>().Arg<Numbers>().Arg<Numbers>().Arg<Integers>()
                                  .Arg<Integers>().Ret<Numbers>());
