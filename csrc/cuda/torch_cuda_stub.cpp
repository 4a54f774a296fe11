// Stands for libtorch_cuda.so while the CUDA library is linked beside a torch without CUDA: so the library names it as
// needed, and finds the real one under a torch that has it. Never installed, never called.
extern "C" __attribute__((visibility("default"))) int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
