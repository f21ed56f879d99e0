// Threads that compute the phases of a step together, in one parallel region.
//
// A phase ends when all of its items are done, not when all threads have arrived: on a machine that other programs
// share, a thread without a core delays no phase in which it computes nothing.
#pragma once

#include <omp.h>

#include <thread>
#include <vector>

#include "vector.h"

namespace headrace {

class Team {
 public:
  // One thread of the team. Every thread makes the same calls in the same order.
  class Member {
   public:
    Member(Team& team, int64_t thread) : team_(team), thread_(thread) {}

    int64_t thread() const { return thread_; }

    // Calls f(0) … f(count - 1), each on one thread, and returns when all calls of the phase have returned. A thread
    // takes adjacent items, which lets the CPU prefetch, and then helps the others.
    template <class F>
    void run(int64_t count, const F& f) {
      const int64_t threads = static_cast<int64_t>(team_.next_.size());
      int64_t done = 0;
      ++phase_;
      expected_ += count;
      for (int64_t other = 0; other < threads; ++other) {
        const int64_t owner = (thread_ + other) % threads;
        const Range part = tile_rows(count, threads, owner);
        for (int64_t i; (i = team_.claim(owner, phase_, part.end - part.begin)) >= 0; ++done) f(part.begin + i);
      }
      if (done > 0) team_.done_.fetch_add(done, std::memory_order_release);
      for (int64_t turn = 0; team_.done_.load(std::memory_order_acquire) < expected_; ++turn)
        turn < kSpins ? pause() : std::this_thread::yield();
    }

   private:
    Team& team_;
    int64_t thread_, phase_ = 0, expected_ = 0;
  };

  // Calls f with the member of each thread, on at most `most` of torch's threads.
  template <class F>
  static void start(int64_t most, const F& f) {
    const int64_t threads = std::clamp<int64_t>(most, 1, at::get_num_threads());
    Team team(threads);
    if (threads == 1) {
      Member member(team, 0);
      return f(member);
    }
#pragma omp parallel num_threads(threads)
    {
      Member member(team, omp_get_thread_num());
      f(member);
    }
  }

 private:
  static constexpr int64_t kSpins = 2000;  // tens of microseconds, longer than a phase of one row

  // Number of the phase, and of its next item, in the upper and lower 32 bits.
  struct alignas(64) Next {
    std::atomic<int64_t> value{0};
  };

  explicit Team(int64_t threads) : next_(threads) {}

  static void pause() {
#if defined(__SSE2__)
    __builtin_ia32_pause();
#endif
  }

  // Returns the next item of a thread's part of a phase, or -1 after the last.
  int64_t claim(int64_t owner, int64_t phase, int64_t size) {
    std::atomic<int64_t>& next = next_[owner].value;
    int64_t seen = next.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t item = seen >> 32 == phase ? seen & 0xffffffff : 0;  // of an earlier phase: not yet begun
      if (seen >> 32 > phase || item == size) return -1;
      if (next.compare_exchange_weak(seen, (phase << 32) | (item + 1), std::memory_order_relaxed)) return item;
    }
  }

  std::vector<Next> next_;
  alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace headrace
