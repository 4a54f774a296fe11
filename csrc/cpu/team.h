// Threads that go through many stages together, with one fork and one join for all of them.
//
// Every member runs the same code. A stage's tasks are handed out on demand; a member leaves a stage when all of its
// tasks are done, whoever did them. So the number of members that really arrive does not matter: one that the system
// holds up delays the others by the tasks it has taken, not by a share fixed beforehand.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "tensors.h"

namespace pyprune::cpu {

class Team {
 public:
  explicit Team(int64_t stages) : gates_(stages), size_(torch::stable::get_num_threads()) {}

  class Member {
   public:
    explicit Member(Team& team) : team_(team) {}

    // This member's share of a stage; `prepare` runs before its first task, if it gets one. While a member holds a task
    // the stage is not over, so what the stage reads is still there.
    template <class Stage, class Prepare>
    void run(Stage& stage, const Prepare& prepare) {
      Gate& gate = team_.gates_.at(next_++);
      const int64_t n = stage.tasks();
      bool prepared = false;
      for (int64_t begin = gate.taken.load(std::memory_order_relaxed); begin < n;) {
        const int64_t end = begin + std::max<int64_t>(1, (n - begin) / (2 * team_.size_));  // less and less
        if (!gate.taken.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        try {
          if (!prepared) prepare();
          prepared = true;
          for (int64_t task = begin; task < end; ++task) stage(task);
        } catch (...) {  // the others must not wait for ever
          team_.failed_.store(true, std::memory_order_relaxed);
        }
        gate.done.fetch_add(end - begin, std::memory_order_release);
        begin = gate.taken.load(std::memory_order_relaxed);
      }
      for (int64_t spins = 0; gate.done.load(std::memory_order_acquire) < n; ++spins) rest(spins);
    }
    template <class Stage>
    void run(Stage& stage) {
      run(stage, [] {});
    }

   private:
    Team& team_;
    size_t next_ = 0;
  };

  // Calls work(member) on every thread of torch's pool.
  template <class F>
  void run(const F& work) {
    torch::stable::parallel_for(0, size_, 1, [&](int64_t, int64_t) {
      Member member(*this);
      work(member);
    });
    STD_TORCH_CHECK(!failed_.load(), "out of memory in a decode step");
  }

  int64_t size() const { return size_; }

 private:
  struct alignas(64) Gate {
    std::atomic<int64_t> taken{0}, done{0};
  };

  // Spinning is quickest while every thread has a core of its own; where it has none, spinning keeps the others off.
  static void rest(int64_t spins) {
    if (spins < 4096) {
#if defined(__x86_64__) || defined(__i386__)
      _mm_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }

  std::vector<Gate> gates_;
  int64_t size_;
  std::atomic<bool> failed_{false};
};

}  // namespace pyprune::cpu
