// Threads that go through many stages together, with one fork and one join for all of them.
//
// Every member runs the same code. A stage's tasks are handed out on demand, and none begins before all tasks of the stage
// before are done, whoever did them. So the number of members that really arrive does not matter: one that the system
// holds up delays the others by the tasks it has taken, not by a share fixed beforehand.
//
// A member takes its first tasks of a stage before it waits for the stage before, and prefetches their weights meanwhile; and
// it takes more tasks before its last ones, which so know what to prefetch next.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "prefetch.h"
#include "stages.h"
#include "tensors.h"

namespace pyprune::cpu {

class ThreadTeam {
  struct alignas(64) Gate {
    std::atomic<int64_t> taken{0}, done{0};
  };

 public:
  explicit ThreadTeam(int64_t stages) : gates_(stages), size_(torch::stable::get_num_threads()) {}

  class Member {
   public:
    explicit Member(ThreadTeam& team) : team_(team) {}

    // This member's share of a stage; `prepare` runs before its first task, if it gets one. The stage may not be over when
    // this returns: the next stage waits for it, and leaving the team does.
    template <class Stage, class Prepare>
    void run(Stage& stage, const Prepare& prepare) {
      Gate& gate = team_.gates_.at(next_++);
      const int64_t n = stage.tasks();
      Share share = take(gate, n);
      await(reads(stage, share));
      bool prepared = false;
      while (share.begin < share.end) {
        Share further{};
        try {
          if (!prepared) prepare();
          prepared = true;
          for (int64_t task = share.begin, stop; task < share.end; task = stop) {
            stop = std::min(share.end, task + together(stage));
            if (stop == share.end) further = take(gate, n);
            const Share following = stop == share.end ? further : Share{stop, share.end};
            perform(stage, {task, stop}, reads(stage, following).data);
          }
        } catch (...) {  // the others must not wait for ever
          team_.failed_.store(true, std::memory_order_relaxed);
          gate.done.fetch_add(further.end - further.begin, std::memory_order_release);
          further = {};
        }
        gate.done.fetch_add(share.end - share.begin, std::memory_order_release);
        share = further.begin < further.end ? further : take(gate, n);
      }
      before_ = &gate;
      tasks_before_ = n;
    }
    template <class Stage>
    void run(Stage& stage) {
      run(stage, [] {});
    }

   private:
    struct Share {
      int64_t begin = 0, end = 0;
    };

    // Tasks that nobody has taken, less and less at a time; none where all are.
    Share take(Gate& gate, int64_t n) const {
      for (int64_t begin = gate.taken.load(std::memory_order_relaxed); begin < n;) {
        const int64_t end = begin + std::max<int64_t>(1, (n - begin) / (2 * team_.size_));
        if (gate.taken.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return {begin, end};
      }
      return {};
    }

    // Prefetches the first lines of what comes, then others, up to kTaskBytes, as long as the stage before is not over.
    void await(Reads coming) const {
      const auto* line = static_cast<const char*>(coming.data);
      const char* end = line + std::min(coming.bytes, kTaskBytes);
      for (const char* first = std::min(end, line + kDistance); line < first; line += 64)
        __builtin_prefetch(line, 0, 2);
      for (int64_t spins = 0; before_ && before_->done.load(std::memory_order_acquire) < tasks_before_;) {
        if (line < end) __builtin_prefetch(line, 0, 2), line += 64;
        else rest(spins++);
      }
    }

    // A stage that reads weights says which, and gets what comes after its tasks.
    template <class Stage>
    static Reads reads(const Stage& stage, Share share) {
      if constexpr (kStreams<Stage>) return share.begin < share.end ? stage.reads(share.begin, share.end) : Reads{};
      else return {};
    }
    template <class Stage>
    static int64_t together(const Stage& stage) {
      if constexpr (kStreams<Stage>) return stage.together();
      else return 1;
    }
    template <class Stage>
    static void perform(const Stage& stage, Share share, const void* next) {
      if constexpr (kStreams<Stage>) stage(share.begin, share.end, next);
      else stage(share.begin);
    }

    ThreadTeam& team_;
    size_t next_ = 0;
    const Gate* before_ = nullptr;
    int64_t tasks_before_ = 0;
  };

  // Calls work(member) on every thread of torch's pool.
  template <class F>
  void run(const F& work) {
    torch::stable::parallel_for(0, size_, 1, [&](int64_t, int64_t) {
      Member member(*this);
      work(member);
    });
    STD_TORCH_CHECK(!failed_.load(), "out of memory");
  }

  int64_t size() const { return size_; }

 private:
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
