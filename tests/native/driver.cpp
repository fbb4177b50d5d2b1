// Runs the CPU library without Python: on cases whose inputs, results and error bounds native_cases.py wrote to a file,
// or on one layer, to be counted.
//
//   driver cases FILE
//   driver layer WHAT ISA N C H K R STRIDE [GROUPS]     WHAT: forward, exact, fused, dx, dw, dw-rest, dw-sign
#include "adder.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

static int failures = 0, checks = 0;

static void fail(const std::string &what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  ++failures;
}

template <class E> static bool read(FILE *file, std::vector<E> &to, int64_t count) {
  to.resize(static_cast<size_t>(count));
  return std::fread(to.data(), sizeof(E), to.size(), file) == to.size();
}

struct Expected {
  Doubles value, bound;
  bool read_from(FILE *file, int64_t count) { return read(file, value, count) && read(file, bound, count); }
  void check(const Floats &got, const std::string &what) const {
    ++checks;
    for (size_t i = 0; i < value.size(); ++i)
      if (!(std::fabs(got[i] - value[i]) <= bound[i]))
        return fail(what + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", expected " +
                    std::to_string(value[i]) + " within " + std::to_string(bound[i]));
  }
};

static void run_case(const adder_shape &s, FILE *file, const std::string &isa, int64_t number) {
  const int64_t ny = s.N * s.P * s.Q * s.K, nx = s.N * s.H * s.W * s.C, nw = s.K * s.R * s.S * (s.C / s.groups);
  Floats x, w, dy, scale, shift, residual;
  Expected y_exact, y_fast, fused, dx[4], dw[2]; // dx: by mode, then clipped exactly
  bool good = read(file, x, nx) && read(file, w, nw) && read(file, dy, ny) && read(file, scale, s.K) &&
              read(file, shift, s.K) && read(file, residual, ny) && y_exact.read_from(file, ny) &&
              y_fast.read_from(file, ny) && fused.read_from(file, ny);
  for (int i = 0; i < 4; ++i) good = good && dx[i].read_from(file, nx);
  for (int i = 0; i < 2; ++i) good = good && dw[i].read_from(file, nw);
  if (!good) {
    std::fprintf(stderr, "the file of cases ends too early\n");
    std::exit(2);
  }
  const std::string what = isa + ", case " + std::to_string(number) + ", ";
  Floats y(ny), gx(nx), gw(nw);
  const float nan = std::nanf("");
  auto run = [&](int status, const char *name) {
    if (status != ADDER_OK) fail(what + name + " returned " + std::to_string(status));
  };
  for (int exact = 0; exact < 2; ++exact) {
    y.assign(ny, nan);
    run(adder_forward(&s, x.data(), w.data(), nullptr, y.data(), exact), "forward");
    (exact ? y_exact : y_fast).check(y, what + (exact ? "y, exact" : "y"));
    for (int adds = 0; adds < 2; ++adds) {
      Floats again(ny, nan);
      adder_set_adds(adds);
      run(adder_forward(&s, x.data(), w.data(), nullptr, again.data(), exact), "forward");
      if (std::memcmp(again.data(), y.data(), sizeof(float) * again.size())) fail(what + "additions and fma differ");
    }
    adder_set_adds(-1);
  }
  const adder_epilogue epilogue = {scale.data(), shift.data(), residual.data(), 1};
  y.assign(ny, nan);
  run(adder_forward(&s, x.data(), w.data(), &epilogue, y.data(), 0), "forward, fused");
  fused.check(y, what + "y, fused");
  for (int i = 0; i < 6; ++i) { // the last three exactly
    gx.assign(nx, nan);
    run(adder_grad_input(&s, dy.data(), x.data(), w.data(), gx.data(), i % 3, i / 3), "dx");
    dx[i == 3 ? 3 : i % 3].check(gx, what + "dx, mode " + std::to_string(i % 3) + (i < 3 ? "" : ", exact"));
  }
  const int modes[2] = {ADDER_FULL, ADDER_SIGN};
  for (int i = 0; i < 2; ++i) {
    gw.assign(nw, nan);
    run(adder_grad_weight(&s, dy.data(), x.data(), w.data(), gw.data(), modes[i]), "dw");
    dw[i].check(gw, what + "dw, mode " + std::to_string(modes[i]));
  }
  gx.assign(nx, nan), gw.assign(nw, nan);
  const int taken = adder_gradients(&s, dy.data(), x.data(), w.data(), nullptr, gx.data(), gw.data());
  if (taken == ADDER_OK) {
    dx[ADDER_SIGN].check(gx, what + "dx, with dw");
    dw[1].check(gw, what + "dw, with dx");
  } else if (taken != ADDER_UNSUITED) run(taken, "both gradients");
  gw.assign(nw, nan);
  const int status = adder_grad_weight_product(&s, dy.data(), x.data(), w.data(), gw.data());
  if (status == ADDER_OK) dw[0].check(gw, what + "dw, product");
  else if (status != ADDER_UNSUITED) run(status, "dw, product");
  // A convolution's weight gradient is what filters of zeros get.
  const Floats zeros(nw);
  gw.assign(nw, nan);
  run(adder_grad_weight(&s, dy.data(), x.data(), zeros.data(), gw.data(), ADDER_FULL), "dw, of zeros");
  run(adder_grad_weight_from_convolution(&s, dy.data(), w.data(), gw.data()), "dw, from a convolution");
  dw[0].check(gw, what + "dw, from a convolution");
  for (float broken : {nan, INFINITY}) {
    gw.back() = broken;
    if (adder_grad_weight_from_convolution(&s, dy.data(), w.data(), gw.data()) != ADDER_NOT_FINITE)
      fail(what + "an element that is not finite was not reported");
  }
}

static int run_cases(const char *path) {
  std::string isas = adder_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(' ', begin), isas.size());
    const std::string isa = isas.substr(begin, end - begin);
    begin = end + 1;
    if (!adder_use(isa.c_str())) fail("cannot use " + isa);
    FILE *const file = std::fopen(path, "rb");
    if (!file) {
      std::perror(path);
      return 2;
    }
    int64_t numbers[16];
    int64_t count = 0;
    for (; std::fread(numbers, sizeof numbers, 1, file) == 1; ++count) {
      adder_shape shape;
      static_assert(sizeof shape == sizeof numbers, "adder_shape is 16 numbers");
      std::memcpy(&shape, numbers, sizeof shape);
      run_case(shape, file, isa, count);
    }
    std::fclose(file);
    std::printf("%s: %lld cases\n", isa.c_str(), static_cast<long long>(count));
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures || !checks ? 1 : 0;
}

// Numbers between -1 and 1 (from 0 on for x, as behind a ReLU), the same on every machine.
static void fill(Floats &to, uint32_t seed, bool positive) {
  for (float &value : to) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.f - 1.f;
    if (positive && value < 0) value = 0;
  }
}

static int run_layer(int count, char **arguments) {
  const std::string what = arguments[0];
  int64_t n[7] = {0, 0, 0, 0, 0, 0, 1};
  for (int i = 0; i < count - 2; ++i) n[i] = std::atoll(arguments[2 + i]);
  adder_shape s = {};
  s.N = n[0], s.C = n[1], s.H = s.W = n[2], s.K = n[3], s.R = s.S = n[4], s.stride_h = s.stride_w = n[5],
  s.groups = n[6];
  s.dilation_h = s.dilation_w = 1;
  s.pad_top = s.pad_left = s.R / 2;
  s.P = s.Q = (s.H + 2 * s.pad_top - s.R) / s.stride_h + 1;
  if (!adder_use(arguments[1])) {
    std::fprintf(stderr, "no %s here\n", arguments[1]);
    return 3;
  }
  Floats x(s.N * s.H * s.W * s.C), w(s.K * s.R * s.S * (s.C / s.groups)), y(s.N * s.P * s.Q * s.K), out;
  fill(x, 1, true), fill(w, 2, false), fill(y, 3, false);
  if (what == "forward" || what == "exact")
    return adder_forward(&s, x.data(), w.data(), nullptr, y.data(), what == "exact");
  if (what == "fused") {
    const Floats scale(s.K, 0.1f), shift(s.K, 0.5f), residual = y;
    const adder_epilogue e = {scale.data(), shift.data(), residual.data(), 1};
    return adder_forward(&s, x.data(), w.data(), &e, y.data(), 0);
  }
  out.resize(what == "dx" ? x.size() : w.size());
  if (what == "dx") return adder_grad_input(&s, y.data(), x.data(), w.data(), out.data(), ADDER_CLIPPED, 0);
  if (what == "dw") return adder_grad_weight_product(&s, y.data(), x.data(), w.data(), out.data());
  if (what == "dw-rest") return adder_grad_weight_from_convolution(&s, y.data(), w.data(), out.data());
  if (what == "dw-sign") return adder_grad_weight(&s, y.data(), x.data(), w.data(), out.data(), ADDER_SIGN);
  if (what == "both-signs") {
    Floats gradient(x.size());
    return adder_gradients(&s, y.data(), x.data(), w.data(), nullptr, gradient.data(), out.data());
  }
  std::fprintf(stderr, "%s is none of forward, exact, fused, dx, dw, dw-rest, dw-sign, both-signs\n", what.c_str());
  return 2;
}

int main(int argc, char **argv) {
  if (argc == 3 && !std::strcmp(argv[1], "cases")) return run_cases(argv[2]);
  if ((argc == 10 || argc == 11) && !std::strcmp(argv[1], "layer")) return run_layer(argc - 2, argv + 2);
  std::fprintf(stderr, "usage: driver cases FILE | driver layer WHAT ISA N C H K R STRIDE [GROUPS]\n");
  return 2;
}
