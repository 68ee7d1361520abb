// Attention of a block of steps on CPUs, as `reference.py` defines it. `cpu.py` compiles it for one head width, HEAD_WIDTH.
// XLA writes each tile of scores to memory and reads it again for the maximum, the exponential and the sum. Here the
// scores of one vector of queries (forward) or keys (backward) against 8 keys (queries) stay in registers between the
// two products.

#include "cpu_vectors.h"

namespace {

constexpr int kGroup = 8;  // number of keys (forward) or queries (backward) whose scores are in registers together
constexpr float kLn2 = 0.693147181f;

// The keys [first, last) of the context or of the block that a query sees. Both ends ascend over the queries.
struct Range {
  int first, last;
};

// The keys and values [count, D] of one head, of the context or of the block.
struct Keys {
  const float *k, *v;
  const Range* seen;  // one per query
  int count;
};

// The online softmax of kLanes queries, in powers of two.
struct Running {
  Vec q[D], out[D], top, total;  // q is multiplied by log2(e)
  Int first, last;

  // Adds kGroup keys, from key j on. kMask: some query does not see all of them.
  template <bool kMask>
  void Absorb(const float* __restrict k, const float* __restrict v, int j) {
    Vec s[kGroup] = {};
    for (int d = 0; d < D; ++d) {
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) s[r] += q[d] * k[r * D + d];
    }
    if (kMask) {
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) s[r] = (j + r >= first) & (j + r < last) ? s[r] : All(kMasked);
    }
    Vec m0 = Max(top, s[0]), m1 = s[1];
#pragma GCC unroll 8
    for (int r = 2; r < kGroup; r += 2) m0 = Max(m0, s[r]), m1 = Max(m1, s[r + 1]);
    const Vec m = Max(m0, m1), decay = Exp2(top - m);
    top = m;
#pragma GCC unroll 8
    for (int r = 0; r < kGroup; ++r) {
      s[r] = Exp2(s[r] - m);
      if (kMask) s[r] = (j + r >= first) & (j + r < last) ? s[r] : Vec{};
    }
    Vec t0 = s[0], t1 = s[1];
#pragma GCC unroll 8
    for (int r = 2; r < kGroup; r += 2) t0 += s[r], t1 += s[r + 1];
    total = total * decay + (t0 + t1);
    for (int d = 0; d < D; ++d) {
      Vec a = out[d] * decay, b = Vec{};
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; r += 2) a += s[r] * v[r * D + d], b += s[r + 1] * v[(r + 1) * D + d];
      out[d] = a + b;
    }
  }

  // Adds all keys that any of the queries sees. seen: [kLanes].
  void Absorb(const Keys& keys, const Range* seen) {
    int begin = seen[0].first, end = seen[0].last, all_from = begin, all_to = end;
    for (int l = 0; l < kLanes; ++l) {
      first[l] = seen[l].first, last[l] = seen[l].last;
      begin = std::min(begin, seen[l].first), end = std::max(end, seen[l].last);
      all_from = std::max(all_from, seen[l].first), all_to = std::min(all_to, seen[l].last);
    }
    for (int j = begin; j < end; j += kGroup) {
      const size_t at = (size_t)j * D;
      if (j >= all_from && j + kGroup <= all_to) {
        Absorb<false>(keys.k + at, keys.v + at, j);
        continue;
      }
      float k[kGroup * D] = {}, v[kGroup * D] = {};  // the last group can be incomplete
      const size_t bytes = sizeof(float) * D * std::min(kGroup, keys.count - j);
      std::memcpy(k, keys.k + at, bytes), std::memcpy(v, keys.v + at, bytes);
      Absorb<true>(k, v, j);
    }
  }
};

// Computes out [rows, D] and lse [rows] (natural logarithm) of one head. sink_k, sink_v: [D], or null without a sink.
void Forward(const float* q, int rows, const Keys* keys, const float* sink_k, const float* sink_v, float* out,
             float* lse) {
  for (int i = 0; i < rows; i += kLanes) {
    Running run;
    Range seen[2][kLanes];
    run.top = sink_k ? Vec{} : All(kMasked), run.total = sink_k ? All(1.0f) : Vec{};
    for (int l = 0; l < kLanes; ++l) {
      const int row = std::min(i + l, rows - 1);  // unused lanes repeat the last row
      for (int part = 0; part < 2; ++part) seen[part][l] = keys[part].seen[row];
      for (int d = 0; d < D; ++d) run.q[d][l] = q[(size_t)row * D + d] * kLog2E;
    }
    for (int d = 0; d < D; ++d) {
      run.out[d] = sink_k ? All(sink_v[d]) : Vec{};
      if (sink_k) run.top += run.q[d] * sink_k[d];
    }
    for (int part = 0; part < 2; ++part) run.Absorb(keys[part], seen[part]);
    for (int l = 0; l < std::min(kLanes, rows - i); ++l) {
      for (int d = 0; d < D; ++d) out[(size_t)(i + l) * D + d] = run.out[d][l] / run.total[l];
      lse[i + l] = run.top[l] * kLn2 + std::log(run.total[l]);
    }
  }
}

// The queries of one head in the backward pass.
struct Rows {
  const float *q, *d_out, *lse, *delta;  // [count, D] twice, [count] twice: lse times log2(e), Σ d_out·out
  float* d_q;                            // [count, D]
  int count;
};

// The gradients between kLanes keys and one group of queries after the other. With weights w = exp(score - lse):
// dv = wᵀ·do, ds = w·(do·vᵀ - do·o), dk = dsᵀ·q, dq = ds·k.
struct Gradients {
  Vec k[D], v[D], d_k[D], d_v[D];  // k is multiplied by log2(e)
  float plain[kLanes * D];         // [kLanes, D], not multiplied

  // Adds kGroup queries to the keys from key j on. kMask: some query does not see all keys. kBlock: keys get gradients.
  template <bool kMask, bool kBlock>
  void Absorb(const float* __restrict q, const float* __restrict d_out, const float* __restrict lse,
              const float* __restrict delta, const Range* seen, int j, float* __restrict d_q) {
    Vec w[kGroup], ds[kGroup];
#pragma GCC unroll 8
    for (int r = 0; r < kGroup; ++r) w[r] = All(-lse[r]), ds[r] = All(-delta[r]);
    for (int d = 0; d < D; ++d) {
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) w[r] += k[d] * q[r * D + d];
    }
    for (int d = 0; d < D; ++d) {
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) ds[r] += v[d] * d_out[r * D + d];
    }
    float scores[kGroup][kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < kGroup; ++r) {
      w[r] = Exp2(w[r]);
      if (kMask) {
        Int key;
        for (int l = 0; l < kLanes; ++l) key[l] = j + l;
        w[r] = (key >= seen[r].first) & (key < seen[r].last) ? w[r] : Vec{};
      }
      ds[r] *= w[r];
      std::memcpy(scores[r], &ds[r], sizeof(Vec));
    }
    if (kBlock) {
      for (int d = 0; d < D; ++d) {
        Vec a = d_v[d], b = d_k[d];
#pragma GCC unroll 8
        for (int r = 0; r < kGroup; ++r) a += w[r] * d_out[r * D + d], b += ds[r] * q[r * D + d];
        d_v[d] = a, d_k[d] = b;
      }
    }
    constexpr int kPart = D < kLanes ? D : kLanes;  // here a vector holds the numbers of one key
    typedef float Part __attribute__((vector_size(4 * kPart)));
    for (int d = 0; d < D; d += kPart) {
      Part sum[kGroup];
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) std::memcpy(&sum[r], d_q + r * D + d, sizeof(Part));
      for (int l = 0; l < kLanes; ++l) {
        Part key;
        std::memcpy(&key, plain + l * D + d, sizeof(Part));
#pragma GCC unroll 8
        for (int r = 0; r < kGroup; ++r) sum[r] += key * scores[r][l];
      }
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) std::memcpy(d_q + r * D + d, &sum[r], sizeof(Part));
    }
  }

  // Adds the group of queries from query i on, which can be incomplete.
  template <bool kBlock>
  void AbsorbMasked(const Rows& rows, const Range* seen, int i, int j) {
    float q[kGroup * D] = {}, d_out[kGroup * D] = {}, d_q[kGroup * D] = {}, lse[kGroup] = {}, delta[kGroup] = {};
    Range some[kGroup] = {};
    const size_t at = (size_t)i * D, there = std::min(kGroup, rows.count - i), bytes = sizeof(float) * D * there;
    std::memcpy(q, rows.q + at, bytes), std::memcpy(d_out, rows.d_out + at, bytes);
    std::memcpy(d_q, rows.d_q + at, bytes);
    std::copy_n(rows.lse + i, there, lse), std::copy_n(rows.delta + i, there, delta), std::copy_n(seen + i, there, some);
    Absorb<true, kBlock>(q, d_out, lse, delta, some, j, d_q);
    std::memcpy(rows.d_q + at, d_q, bytes);
  }
};

// Adds the gradients from `keys` to rows.d_q. kBlock: also sets d_k, d_v [keys.count, D] of keys that any query sees.
template <bool kBlock>
void Backward(const Rows& rows, const Keys& keys, float* d_k, float* d_v) {
  const Range *seen = keys.seen, *end = seen + rows.count;
  if (seen == end) return;
  for (int j = seen->first; j < keys.count; j += kLanes) {  // no query sees an earlier key
    const auto until = [=](auto before) { return int(std::partition_point(seen, end, before) - seen); };
    const int begin = until([=](Range r) { return r.last <= j; });  // queries [begin, stop) see some keys
    const int stop = until([=](Range r) { return r.first < j + kLanes; });
    const int all_from = until([=](Range r) { return r.last < j + kLanes; });  // [all_from, all_to) see all
    const int all_to = until([=](Range r) { return r.first <= j; });
    if (begin >= stop) continue;
    Gradients keep = {};
    const int there = std::min(kLanes, keys.count - j);
    for (int l = 0; l < there; ++l) {
      for (int d = 0; d < D; ++d) {
        const size_t at = (size_t)(j + l) * D + d;
        keep.plain[l * D + d] = keys.k[at];
        keep.k[d][l] = keys.k[at] * kLog2E, keep.v[d][l] = keys.v[at];
      }
    }
    for (int i = begin; i < stop; i += kGroup) {
      const size_t at = (size_t)i * D;
      if (i >= all_from && i + kGroup <= all_to) {
        keep.Absorb<false, kBlock>(rows.q + at, rows.d_out + at, rows.lse + i, rows.delta + i, seen + i, j,
                                   rows.d_q + at);
      } else {
        keep.AbsorbMasked<kBlock>(rows, seen, i, j);
      }
    }
    for (int l = 0; kBlock && l < there; ++l) {
      for (int d = 0; d < D; ++d) {
        const size_t at = (size_t)(j + l) * D + d;
        d_k[at] = keep.d_k[d][l], d_v[at] = keep.d_v[d][l];
      }
    }
  }
}

using Numbers = ffi::Buffer<ffi::F32, 4>;   // [B, H, Q or K or S, D]: queries, the block, the context
using PerQuery = ffi::Buffer<ffi::F32, 3>;  // [B, H, Q]
using PerHead = ffi::Buffer<ffi::F32, 2>;   // [H, D]
using Episodes = ffi::Buffer<ffi::S32, 2>;  // [B, K or S]
using Bounds = ffi::Buffer<ffi::S32, 1>;    // [4]: filled slots, step of the first query, queries that matter, window

// The arguments of both passes, in the order of `_buffers` in cpu.py.
struct Inputs {
  bool has_sink, within_episode;
  Numbers q, k, v;
  PerHead sink_k, sink_v;
  Episodes episodes;
  Numbers context_k, context_v;
  Episodes context_episodes;
  Bounds bounds;

  int batch() const { return q.dimensions()[0]; }
  int heads() const { return q.dimensions()[1]; }
  int rows() const { return q.dimensions()[2]; }
  int steps() const { return k.dimensions()[2]; }
  int slots() const { return context_k.dimensions()[2]; }
  int filled() const { return std::clamp(bounds.typed_data()[0], 0, slots()); }
  int start() const { return std::clamp(bounds.typed_data()[1], 0, steps() - rows()); }
  int used() const { return std::clamp(bounds.typed_data()[2], 0, rows()); }

  // Returns the ranges that queries see, [B, 2 (context, block), used]. Episodes ascend, so each one is contiguous.
  std::vector<Range> Seen() const {
    std::vector<Range> seen((size_t)batch() * 2 * used());
    for (int b = 0; b < batch(); ++b) {
      const int32_t* own = episodes.typed_data() + (size_t)b * steps();
      const int32_t* before = context_episodes.typed_data() + (size_t)b * slots();
      Range *context = seen.data() + (size_t)b * 2 * used(), *block = context + used();
      for (int i = 0, step = start(); i < used(); ++i, ++step) {
        const int first = step + 1 - bounds.typed_data()[3];  // of the window, as a step of the block
        context[i] = {std::clamp(filled() + first, 0, filled()), filled()}, block[i] = {std::max(first, 0), step + 1};
        if (!within_episode) continue;
        context[i].first = std::lower_bound(before + context[i].first, before + filled(), own[step]) - before;
        block[i].first = std::lower_bound(own + block[i].first, own + step, own[step]) - own;
      }
    }
    return seen;
  }

  // Sets keys [2] to those of the context and of the block, for one head of one environment.
  void KeysOf(int item, const std::vector<Range>& seen, Keys* keys) const {
    const Range* context = seen.data() + (size_t)(item / heads()) * 2 * used();
    const size_t at = (size_t)item * slots() * D, own = (size_t)item * steps() * D;
    keys[0] = {context_k.typed_data() + at, context_v.typed_data() + at, context, filled()};
    keys[1] = {k.typed_data() + own, v.typed_data() + own, context + used(), steps()};
  }
};

ffi::Error ForwardAll(ffi::ThreadPool pool, bool has_sink, bool within_episode, Numbers q, Numbers k, Numbers v,
                      PerHead sink_k, PerHead sink_v, Episodes episodes, Numbers context_k, Numbers context_v,
                      Episodes context_episodes, Bounds bounds, ffi::Result<Numbers> out, ffi::Result<PerQuery> lse) {
  const Inputs x{has_sink, within_episode, q,         k,         v,                sink_k,
                 sink_v,   episodes,       context_k, context_v, context_episodes, bounds};
  const std::vector<Range> seen = x.Seen();
  Share(pool, x.batch() * x.heads(), [&](int item) {
    Keys keys[2];
    x.KeysOf(item, seen, keys);
    const size_t at = (size_t)item * x.rows(), head = (size_t)(item % x.heads()) * D;
    const float* sink = has_sink ? sink_k.typed_data() + head : nullptr;
    float *out_of = out->typed_data() + at * D, *lse_of = lse->typed_data() + at;
    Forward(q.typed_data() + at * D, x.used(), keys, sink, sink_v.typed_data() + head, out_of, lse_of);
    std::fill(out_of + (size_t)x.used() * D, out_of + (size_t)x.rows() * D, 0.0f);
    std::fill(lse_of + x.used(), lse_of + x.rows(), -kMasked);  // every weight is 0 there
  });
  return ffi::Error::Success();
}

ffi::Error BackwardAll(ffi::ThreadPool pool, bool has_sink, bool within_episode, Numbers q, Numbers k, Numbers v,
                       PerHead sink_k, PerHead sink_v, Episodes episodes, Numbers context_k, Numbers context_v,
                       Episodes context_episodes, Bounds bounds, PerQuery lse, PerQuery delta, Numbers d_out,
                       ffi::Result<Numbers> d_q, ffi::Result<Numbers> d_k, ffi::Result<Numbers> d_v) {
  const Inputs x{has_sink, within_episode, q,         k,         v,                sink_k,
                 sink_v,   episodes,       context_k, context_v, context_episodes, bounds};
  const std::vector<Range> seen = x.Seen();
  Share(pool, x.batch() * x.heads(), [&](int item) {
    Keys keys[2];
    x.KeysOf(item, seen, keys);
    const size_t at = (size_t)item * x.rows(), own = (size_t)item * x.steps() * D;
    float *d_q_of = d_q->typed_data() + at * D, *d_k_of = d_k->typed_data() + own, *d_v_of = d_v->typed_data() + own;
    std::fill_n(d_q_of, (size_t)x.rows() * D, 0.0f), std::fill_n(d_k_of, (size_t)x.steps() * D, 0.0f);
    std::fill_n(d_v_of, (size_t)x.steps() * D, 0.0f);
    std::vector<float> scaled(lse.typed_data() + at, lse.typed_data() + at + x.used());
    for (float& sum : scaled) sum *= kLog2E;
    const Rows rows{q.typed_data() + at * D, d_out.typed_data() + at * D, scaled.data(), delta.typed_data() + at,
                    d_q_of,                  x.used()};
    Backward<false>(rows, keys[0], nullptr, nullptr);
    Backward<true>(rows, keys[1], d_k_of, d_v_of);
  });
  return ffi::Error::Success();
}

#define INPUTS                                                                                \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("has_sink").Attr<bool>("within_episode") \
      .Arg<Numbers>().Arg<Numbers>().Arg<Numbers>().Arg<PerHead>().Arg<PerHead>()             \
      .Arg<Episodes>().Arg<Numbers>().Arg<Numbers>().Arg<Episodes>().Arg<Bounds>()

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, ForwardAll, INPUTS.Ret<Numbers>().Ret<PerQuery>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    backward, BackwardAll,
    INPUTS.Arg<PerQuery>().Arg<PerQuery>().Arg<Numbers>().Ret<Numbers>().Ret<Numbers>().Ret<Numbers>());
