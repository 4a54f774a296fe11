// Runs the machine code of tile instructions on a processor without them: each one traps as an unknown instruction,
// is decoded here, done by the emulator, and stepped over. x86-64 Linux.
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "amx_emulator.h"

namespace {

[[noreturn]] void stop(const char* what, const void* where) {
  std::printf("FAILED: %s (instruction at %p)\n", what, where);
  std::fflush(stdout);
  _exit(1);
}

struct Instruction {
  const uint8_t* next;  // the byte that is read next
  greg_t* registers;
  int prefix = 0, third = 0;               // 0 none, 1: 66, 2: F3, 3: F2; the register in the prefix
  int mode = 0, reg = 0, rm = 0;           // of the ModRM byte
  bool extends_index = false, extends_base = false;
  int64_t base = 0, index = 0;             // of the address: base and displacement, index times scale

  int64_t value(int number) const {
    static const int places[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers[places[number]];
  }
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, next, sizeof(T));
    next += sizeof(T);
    return value;
  }
  void address() {
    int from = rm;
    bool only_displacement = false;
    if (rm == 4) {  // a further byte: scale, index, base
      const int sib = take<uint8_t>(), number = (sib >> 3 & 7) + 8 * extends_index;
      if (number != 4) index = value(number) << (sib >> 6);
      from = sib & 7;
      only_displacement = mode == 0 && from == 5;
    }
    const bool from_here = mode == 0 && rm == 5;
    if (!only_displacement && !from_here) base = value(from + 8 * extends_base);
    if (mode == 1) base += take<int8_t>();
    else if (mode == 2 || only_displacement || from_here) base += take<int32_t>();
    if (from_here) base += reinterpret_cast<int64_t>(next);  // no operand follows the displacement
  }
};

void emulate(Instruction& in, const uint8_t* start) {
  namespace amx = amx_emulator;
  if (in.take<uint8_t>() != 0xc4) stop("not an instruction of tiles", start);
  const int second = in.take<uint8_t>(), third = in.take<uint8_t>(), opcode = in.take<uint8_t>();
  if ((second & 0x1f) != 2 || (third & 0x84) || !(second & 0x80)) stop("not an instruction of tiles", start);
  in.extends_index = !(second & 0x40);
  in.extends_base = !(second & 0x20);
  in.prefix = third & 3;
  in.third = ~(third >> 3) & 15;
  const int modrm = in.take<uint8_t>();
  in.mode = modrm >> 6, in.reg = modrm >> 3 & 7, in.rm = modrm & 7;
  if (in.mode != 3) in.address();
  auto* memory = reinterpret_cast<void*>(in.base);
  const bool row_wise = in.mode != 3 && in.rm == 4;
  if (opcode == 0x49 && in.mode != 3 && in.reg == 0 && in.prefix == 0)
    amx::load_config(reinterpret_cast<void*>(in.base + in.index));
  else if (opcode == 0x49 && modrm == 0xc0 && in.prefix == 0) amx::release();
  else if (opcode == 0x49 && in.mode == 3 && in.rm == 0 && in.prefix == 3) amx::zero(in.reg);
  else if (opcode == 0x4b && row_wise && in.prefix == 3) amx::load(in.reg, memory, in.index);
  else if (opcode == 0x4b && row_wise && in.prefix == 2) amx::store(in.reg, memory, in.index);
  else if (opcode == 0x5c && in.mode == 3 && in.prefix == 2) amx::dpbf16ps(in.reg, in.rm, in.third);
  else stop("an instruction that the emulator does not know", start);
}

void on_unknown_instruction(int, siginfo_t*, void* context) {
  auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* start = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  Instruction in{start, registers};
  try {
    emulate(in, start);
  } catch (const amx_emulator::Fault& fault) {
    stop(fault.what(), start);
  }
  registers[REG_RIP] = reinterpret_cast<greg_t>(in.next);
}

const bool installed = [] {
  struct sigaction action = {};
  action.sa_sigaction = on_unknown_instruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, nullptr) == 0;
}();

}  // namespace
