// Hides AVX-512 and what came after it from the libraries of one process, and watches that none of it runs.
//
// Loaded twice. As an auditor of the dynamic linker (LD_AUDIT) it is told of every library after it was mapped and
// before any of its code runs; there it overwrites the library's `cpuid` instructions, whose addresses are in the
// table that BENCH_CPUID_TABLE names, with a trap and answers the traps. Loaded by the process itself, it gives Python
// the functions at the end; an auditor lives in a namespace of its own, so the two share no variables.

#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

// As long as `cpuid`. `aaa` does not exist in 64-bit mode, and unlike `ud2` no compiler writes it: a trap of this kind
// is one of ours, and whatever else raises SIGILL goes on being fatal.
#define TRAP ".byte 0x37, 0xa2"
static const unsigned char trap[] = {0x37, 0xa2};
static const unsigned char cpuid[] = {0x0f, 0xa2};

enum { HOW_MANY = 0x4d41534b };  // a leaf that no CPU has: asks how many queries were answered
static atomic_uint answered;

// The bits of CPUID leaf 7 that a CPU with AVX2 and nothing later lacks, by subleaf.
// AVX512F, DQ, IFMA, PF, ER, CD, BW, VL
static const unsigned ebx_0 = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
// AVX512_VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
static const unsigned ecx_0 = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
// AVX512_4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX_BF16, TILE, INT8
static const unsigned edx_0 = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 23 | 1u << 22 | 1u << 24 | 1u << 25;
// AVX_VNNI, AVX512_BF16, AMX_FP16, AVX_IFMA
static const unsigned eax_1 = 1u << 4 | 1u << 5 | 1u << 21 | 1u << 23;
// AVX_VNNI_INT8, NE_CONVERT, AMX_COMPLEX, AVX_VNNI_INT16, AVX10, APX
static const unsigned edx_1 = 1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19 | 1u << 21;

static void answer(int signal_number, siginfo_t* info, void* context) {
  (void)signal_number, (void)info;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  if (memcmp((const void*)registers[REG_RIP], trap, sizeof trap) != 0) {
    signal(SIGILL, SIG_DFL);  // not ours: the instruction runs again, and kills
    return;
  }
  const unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX];
  unsigned eax, ebx, ecx, edx;
  __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
  if (leaf == HOW_MANY) {
    eax = answered;
  } else {
    ++answered;
  }
  if (leaf == 7 && subleaf == 0) {
    ebx &= ~ebx_0;
    ecx &= ~ecx_0;
    edx &= ~edx_0;
  } else if (leaf == 7 && subleaf == 1) {
    eax &= ~eax_1;
    edx &= ~edx_1;
  } else if (leaf == 0x24) {  // AVX10
    eax = ebx = ecx = edx = 0;
  }
  registers[REG_RAX] = eax;
  registers[REG_RBX] = ebx;
  registers[REG_RCX] = ecx;
  registers[REG_RDX] = edx;
  registers[REG_RIP] += sizeof trap;
}

// A process that is not held as it should be must not be measured.
static void fail(const char* what, const char* path) {
  fprintf(stderr, "cpuid mask: %s: %s\n", path ? path : "BENCH_CPUID_TABLE", what);
  abort();
}

static void overwrite(unsigned char* instruction, const char* path) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t start = (uintptr_t)instruction & -page;
  const size_t size = (((uintptr_t)instruction + sizeof trap - 1) | (page - 1)) + 1 - start;
  if (memcmp(instruction, cpuid, sizeof cpuid) != 0) fail("not the library that was disassembled", path);
  if (mprotect((void*)start, size, PROT_READ | PROT_WRITE) != 0) fail(strerror(errno), path);
  memcpy(instruction, trap, sizeof trap);
  if (mprotect((void*)start, size, PROT_READ | PROT_EXEC) != 0) fail(strerror(errno), path);
}

// Called by the dynamic linker.

unsigned la_version(unsigned version) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
  sigaction(SIGILL, &action, NULL);
  return version;
}

unsigned la_objopen(struct link_map* library, Lmid_t namespace, uintptr_t* cookie) {
  (void)namespace, (void)cookie;
  char path[PATH_MAX];
  if (realpath(library->l_name, path) == NULL) return 0;  // the program itself has no name
  const char* name = getenv("BENCH_CPUID_TABLE");
  FILE* table = name ? fopen(name, "r") : NULL;
  if (table == NULL) fail("cannot be read", name);
  const size_t length = strlen(path);
  char* line = NULL;
  size_t capacity = 0;
  while (getline(&line, &capacity, table) > 0) {  // PATH, a tab, hexadecimal addresses
    if (strncmp(line, path, length) != 0 || line[length] != '\t') continue;
    char *next = line + length, *end;
    for (uintptr_t address = strtoul(next, &end, 16); end != next; address = strtoul(next, &end, 16)) {
      overwrite((unsigned char*)(library->l_addr + address), path);
      next = end;
    }
  }
  free(line);
  fclose(table);
  return 0;
}

// Called from Python.

static atomic_uint samples, with_avx512;

static void sample(int signal_number, siginfo_t* info, void* context) {
  (void)signal_number, (void)info;
  enum { MAGIC_AT = 464, STATE_AT = 512 };  // in what XSAVE wrote for the signal
  const mcontext_t* machine = &((ucontext_t*)context)->uc_mcontext;
  const char* saved = (const char*)machine->fpregs;
  uint32_t magic;
  uint64_t state = 0;
  memcpy(&magic, saved + MAGIC_AT, sizeof magic);
  if (magic == 0x46505853) memcpy(&state, saved + STATE_AT, sizeof state);  // FP_XSTATE_MAGIC1
  const uint64_t masks_zmm_tiles = 7u << 5 | 3u << 17;
  // In 64-bit mode every EVEX instruction begins with 62h, and nothing else does.
  const int evex = *(const unsigned char*)machine->gregs[REG_RIP] == 0x62;
  ++samples;
  if (evex || (state & masks_zmm_tiles) != 0) ++with_avx512;
}

// From now on look at what runs, every few milliseconds of CPU time.
void mask_watch(void) {
  struct sigaction action = {.sa_sigaction = sample, .sa_flags = SA_SIGINFO | SA_RESTART};
  const struct itimerval often = {{0, 1000}, {0, 1000}};
  sigaction(SIGPROF, &action, NULL);
  setitimer(ITIMER_PROF, &often, NULL);
}

void mask_unwatch(void) {
  const struct itimerval never = {{0, 0}, {0, 0}};
  setitimer(ITIMER_PROF, &never, NULL);
}

unsigned mask_samples(void) { return samples; }

// Samples that found an instruction of AVX-512, or its registers or those of AMX in use.
unsigned mask_samples_with_avx512(void) { return with_avx512; }

// Queries answered so far. Asks the auditor, so a process without one dies of it.
unsigned mask_queries(void) {
  unsigned eax = HOW_MANY, ebx, ecx = 0, edx;
  __asm__ volatile(TRAP : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return eax;
}
