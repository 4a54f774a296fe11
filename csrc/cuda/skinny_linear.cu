// Launches the skinny linear. The kernel: skinny_linear.cuh.
#include <cuda_runtime.h>

#include <mutex>

#include "instructions.cuh"
#include "skinny_linear.cuh"

namespace pyprune::cuda {

namespace {

constexpr int kMaxDevices = 64;

#define PYPRUNE_TRY(call)                                  \
  do {                                                     \
    if (const cudaError_t error = (call)) return error;    \
  } while (0)

// Facts that do not change, asked once: a call costs nothing but its launch.
cudaError_t device_facts(int device, Device& result) {
  static std::mutex mutex;
  static Device known[kMaxDevices] = {};
  if (device < 0 || device >= kMaxDevices) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  Device& facts = known[device];
  if (!facts.processors) {
    Device fresh{};
    PYPRUNE_TRY(cudaDeviceGetAttribute(&fresh.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    PYPRUNE_TRY(cudaDeviceGetAttribute(&fresh.shared_per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
    PYPRUNE_TRY(cudaDeviceGetAttribute(&fresh.processors, cudaDevAttrMultiProcessorCount, device));
    facts = fresh;
  }
  result = facts;
  return cudaSuccess;
}

cudaError_t may_overlap(Overlap choice, cudaStream_t stream, bool& result) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (choice == Overlap::while_capturing) PYPRUNE_TRY(cudaStreamIsCapturing(stream, &status));
  result = choice == Overlap::always || status == cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

// Opens the shared memory beyond 48 KiB, and sees whether the code that was loaded for this device has the wait: code
// made from compute_80 PTX (any architecture after sm_90) has none, and must not be started early.
template <class W, int kRows, Form kForm>
cudaError_t prepare(int device, const Device& facts, bool& waits) {
  static std::mutex mutex;
  static int version[kMaxDevices] = {};
  const std::lock_guard<std::mutex> lock(mutex);
  if (!version[device]) {
    cudaFuncAttributes attributes;
    const auto kernel = skinny_linear<W, kRows, kForm>;
    PYPRUNE_TRY(cudaFuncGetAttributes(&attributes, kernel));
    PYPRUNE_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     facts.shared_per_block - int(attributes.sharedSizeBytes)));
    version[device] = attributes.ptxVersion;
  }
  waits = version[device] >= 90;
  return cudaSuccess;
}

template <class W, int kRows, Form kForm>
cudaError_t launch(const Arguments& arguments, int device, const Device& facts, cudaStream_t stream, Overlap choice) {
  bool waits = false, overlap = false;
  PYPRUNE_TRY((prepare<W, kRows, kForm>(device, facts, waits)));
  if (waits) PYPRUNE_TRY(may_overlap(choice, stream, overlap));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(arguments.plan.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = size_t(arguments.plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, skinny_linear<W, kRows, kForm>, arguments);
}

template <class W, int kRows>
cudaError_t launch_form(const Arguments& a, Form form, int device, const Device& facts, cudaStream_t stream, Overlap choice) {
  const auto run = form == Form::linear    ? launch<W, kRows, Form::linear>
                   : form == Form::gate_up ? launch<W, kRows, Form::gate_up>
                                           : launch<W, kRows, Form::qkv_rope>;
  return run(a, device, facts, stream, choice);
}

template <class W>
cudaError_t launch_typed(const Arguments& a, int rows, Form form, int device, const Device& facts, cudaStream_t stream,
                         Overlap choice) {
  return rows == 1 ? launch_form<W, 1>(a, form, device, facts, stream, choice)
                   : launch_form<W, 2>(a, form, device, facts, stream, choice);
}

}  // namespace

int launch_skinny_linear(Arguments arguments, int rows, Form form, int device, void* stream, Overlap overlap) {
  if (rows < 1 || rows > 2) return cudaErrorInvalidValue;
  Device facts;
  PYPRUNE_TRY(device_facts(device, facts));
  arguments.plan = plan_of(arguments, rows, matrices_of(form), facts);
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (arguments.weight_type) {
    case DType::f32: return launch_typed<float>(arguments, rows, form, device, facts, queue, overlap);
    case DType::bf16: return launch_typed<Bf16>(arguments, rows, form, device, facts, queue, overlap);
    default: return launch_typed<Half>(arguments, rows, form, device, facts, queue, overlap);
  }
}

}  // namespace pyprune::cuda
