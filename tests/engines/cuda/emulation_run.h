// Stands behind the text of a kernel: runs it with the arguments that an array points to.
#include <utility>
namespace emulation {
template <class... A, size_t... I> static void call(void (*kernel)(A...), void** a, std::index_sequence<I...>) { kernel((A)a[I]...); }
template <class... A> static void call(void (*kernel)(A...), void** a) { call(kernel, a, std::index_sequence_for<A...>()); }
}
extern "C" int run_kernel(int grid, int threads, int bytes, int cluster, unsigned seed, int absent, void** arguments) {
  return emulation::run([](void** a) { emulation::call(KERNEL, a); }, arguments, grid, threads, bytes, cluster, seed, absent);
}
