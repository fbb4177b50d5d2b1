// Runs the int8 kernels of every instruction set that this CPU has, without Python, on cases that int8_cases.py wrote
// to a file; the answers must be equal, bit by bit.
//
//   int8_driver cases FILE
//   int8_driver layer WHAT ISA N C H K R STRIDE GROUPS    runs one layer once, for callgrind: see count_instructions.py
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
  if (adder_int8_forward(&s, x.data(), w.data(), pad, nullptr, sums.data()) != ADDER_OK ||
      adder_int8_forward(&s, x.data(), w.data(), pad, &epilogue, nullptr) != ADDER_OK)
    ++failures;
  adder_int8_levels(ny, wide.data(), inverse_step[0], epilogue.zero_point, epilogue.top, levels.data());
  check(sums, y, what + "y");
  check(got_wide, wide, what + "wide");
  check(got_narrow, narrow, what + "narrow");
  check(levels, narrow, what + "levels");
}

// What: "int8", from bytes to bytes; "int8-wide" with a shortcut and float32 beside the bytes; "int8-levels", bytes of
// the float output.
static int run_layer(char **arguments) {
  const std::string what = arguments[0];
  if (!adder_int8_use(arguments[1])) return 3;
  int64_t n[7];
  for (int i = 0; i < 7; ++i) n[i] = std::atoll(arguments[2 + i]);
  const int64_t pad = n[4] / 2, P = (n[2] + 2 * pad - n[4]) / n[5] + 1;
  const adder_shape s = {n[0], n[1], n[2], n[2], n[3], n[4], n[4], P, P, n[6], n[5], n[5], pad, pad, 1, 1};
  const int64_t ny = s.N * s.P * s.Q * s.K;
  Bytes x(s.N * s.H * s.W * s.C), w(s.K * s.R * s.S * (s.C / s.groups)), narrow(ny);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i * 37);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<uint8_t>(i * 101);
  Floats scale(s.K, -1e-3f), shift(s.K, 1.f), residual(ny, .5f), wide(ny);
  adder_int8_epilogue epilogue = {scale.data(), shift.data(), nullptr, 1, 20.f, 3, 255, nullptr, narrow.data()};
  if (what == "int8-wide") epilogue.residual = residual.data(), epilogue.wide = wide.data();
  if (what == "int8-levels") adder_int8_levels(ny, residual.data(), 20.f, 3, 255, narrow.data());
  else adder_int8_forward(&s, x.data(), w.data(), 0, &epilogue, nullptr);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 11 && !std::strcmp(argv[1], "layer")) return run_layer(argv + 2);
  if (argc != 3 || std::strcmp(argv[1], "cases")) {
    std::fprintf(stderr, "usage: int8_driver cases FILE | int8_driver layer WHAT ISA N C H K R STRIDE GROUPS\n");
    return 2;
  }
  const std::string isas = adder_int8_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(' ', begin), isas.size());
    const std::string isa = isas.substr(begin, end - begin);
    begin = end + 1;
    if (!adder_int8_use(isa.c_str())) ++failures;
    FILE *const file = std::fopen(argv[2], "rb");
    if (!file) {
      std::perror(argv[2]);
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
