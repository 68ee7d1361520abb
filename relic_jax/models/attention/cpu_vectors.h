// What the attention kernels of CPUs share: vectors, powers of two, threads. Vectors are the extension of GCC and Clang, as
// wide as the machine's registers, so the code is specific to no instruction set. Exponentials are powers of two: log2(e)
// is multiplied into one factor of each score.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {
namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int D = HEAD_WIDTH;
constexpr float kMasked = -1e30f, kLog2E = 1.44269504f;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));

inline Vec All(float x) { return Vec{} + x; }
inline Vec Max(Vec a, Vec b) { return a < b ? b : a; }  // a if a is NaN

// 2^x for x up to 127, clamped to -126 below. The relative error is 2e-7. Computed as 2^round(x) times a polynomial.
inline Vec Exp2(Vec x) {
  const Vec shift = All(12582912.0f);  // 1.5 * 2^23: adding it rounds x to an integer in the lowest bits
  x = Max(x, All(-126.0f));
  const Vec shifted = x + shift, f = x - (shifted - shift);
  Vec p = f * 1.33335581e-3f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  return (Vec)((Int)p + ((Int)shifted << 23));
}

// Runs work(0) … work(count - 1) on this thread and on the free threads of the pool. It never waits for work that has
// not been started, so a thread of the pool can call it.
template <typename F>
void Share(ffi::ThreadPool& pool, int count, const F& work) {
  struct State {
    std::atomic<int> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  const auto state = std::make_shared<State>();
  const F* body = &work;  // valid until all work is done; later helpers have no work
  const auto run = [state, count, body] {
    for (int i; (i = state->next.fetch_add(1)) < count;) {
      (*body)(i);
      if (state->done.fetch_add(1) + 1 < count) continue;
      std::lock_guard<std::mutex> lock(state->mutex);
      state->all_done.notify_all();
    }
  };
  for (int helper = 1; helper < std::min<int64_t>(count, pool.num_threads()); ++helper) {
    auto copy = run;
    pool.Schedule(std::move(copy));
  }
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done.load() == count; });
}

}  // namespace
