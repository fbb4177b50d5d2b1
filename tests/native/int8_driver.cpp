// Runs the int8 kernels of every instruction set that this CPU has, without Python, on cases that int8_cases.py wrote
// to a file; the answers must be equal, bit by bit.
//
//   int8_driver FILE
#include "adder_int8.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

typedef std::vector<uint8_t> Bytes;
typedef std::vector<int32_t> Integers;
typedef std::vector<float> Floats;

static int failures = 0, checks = 0;

template <class E> static void read(FILE *file, std::vector<E> &to, int64_t count) {
  to.resize(static_cast<size_t>(count));
  if (std::fread(to.data(), sizeof(E), to.size(), file) == to.size()) return;
  std::fprintf(stderr, "the file of cases ends too early\n");
  std::exit(2);
}

template <class E> static void check(const std::vector<E> &got, const std::vector<E> &expected,
                                     const std::string &what) {
  ++checks;
  for (size_t i = 0; i < expected.size(); ++i)
    if (std::memcmp(&got[i], &expected[i], sizeof(E))) {
      std::fprintf(stderr, "%s: element %zu is %g, expected %g\n", what.c_str(), i, double(got[i]),
                   double(expected[i]));
      ++failures;
      return;
    }
}

// A heap block of exactly this size, aligned as the interface asks, so that a sanitizer sees its end.
static uint8_t *aligned(int64_t bytes) {
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, bytes ? static_cast<size_t>(bytes) : 64)) std::abort();
  return static_cast<uint8_t *>(memory);
}

static void run_case(const int64_t *numbers, FILE *file, const std::string &isa, int64_t number) {
  adder_shape s;
  std::memcpy(&s, numbers, sizeof s);
  const uint8_t pad = static_cast<uint8_t>(numbers[16]);
  const int64_t ny = s.N * s.P * s.Q * s.K;
  Bytes x, w, narrow;
  Integers y;
  Floats scale, shift, inverse_step, residual, wide;
  read(file, x, s.N * s.H * s.W * s.C), read(file, w, s.K * s.R * s.S * (s.C / s.groups)), read(file, y, ny);
  read(file, scale, s.K), read(file, shift, s.K), read(file, inverse_step, 1);
  read(file, residual, ny), read(file, wide, ny), read(file, narrow, ny);

  const std::string what = isa + ", case " + std::to_string(number) + ", ";
  uint8_t *const packed = aligned(adder_int8_packed_size(&s));
  adder_int8_pack(&s, w.data(), packed);
  Integers sums(ny, 1);
  Floats got_wide(ny, -1.f);
  Bytes got_narrow(ny, 77);
  const adder_int8_epilogue epilogue = {scale.data(),
                                        shift.data(),
                                        residual.data(),
                                        static_cast<int32_t>(numbers[18]),
                                        inverse_step[0],
                                        static_cast<int32_t>(numbers[17]),
                                        static_cast<int32_t>(numbers[19]),
                                        got_wide.data(),
                                        got_narrow.data()};
  Bytes levels(ny, 77);
  if (adder_int8_forward(&s, x.data(), nullptr, packed, pad, nullptr, sums.data()) != ADDER_OK ||
      adder_int8_forward(&s, x.data(), w.data(), nullptr, pad, &epilogue, nullptr) != ADDER_OK)
    ++failures;
  adder_int8_levels(ny, wide.data(), inverse_step[0], epilogue.zero_point, epilogue.top, levels.data());
  check(sums, y, what + "y");
  check(got_wide, wide, what + "wide");
  check(got_narrow, narrow, what + "narrow");
  check(levels, narrow, what + "levels");
  std::free(packed);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: int8_driver FILE\n");
    return 2;
  }
  const std::string isas = adder_int8_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(' ', begin), isas.size());
    const std::string isa = isas.substr(begin, end - begin);
    begin = end + 1;
    if (!adder_int8_use(isa.c_str())) ++failures;
    FILE *const file = std::fopen(argv[1], "rb");
    if (!file) {
      std::perror(argv[1]);
      return 2;
    }
    int64_t numbers[20], count = 0;
    for (; std::fread(numbers, sizeof numbers, 1, file) == 1; ++count) run_case(numbers, file, isa, count);
    std::fclose(file);
    std::printf("%s: %lld cases\n", isa.c_str(), static_cast<long long>(count));
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures || !checks ? 1 : 0;
}
