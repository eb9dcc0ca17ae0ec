// Where the threads of a call run.
#include <atomic>
#ifdef __linux__
#include <sched.h>
#endif

// A sleeping thread is often woken on the processor of its waker, and stays there, behind it, for milliseconds while
// another processor has nothing to do. So each thread takes a processor that no other thread of the call has taken;
// it may run on all of them as before, and the system moves it when it has a reason.
struct Places {
#ifdef __linux__
  static constexpr int MOST = CPU_SETSIZE;
  std::atomic<bool> taken[MOST] = {};
  int settle() {  // the processor, or -1 where all are taken or nothing is known
    const int here = sched_getcpu();
    if (here < 0 || here >= MOST) return -1;
    if (!taken[here].exchange(true)) return here;
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return -1;
    for (int i = 1; i < MOST; i++) {
      const int there = (here + i) % MOST;
      if (!CPU_ISSET(there, &allowed) || taken[there].exchange(true)) continue;
      CPU_ZERO(&one);
      CPU_SET(there, &one);
      if (!sched_setaffinity(0, sizeof one, &one)) sched_setaffinity(0, sizeof allowed, &allowed);
      return there;
    }
    return -1;
  }
  void make_way() { sched_yield(); }  // for threads that have been woken here
#else
  int settle() { return -1; }
  void make_way() {}
#endif
};
