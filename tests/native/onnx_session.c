// Runs a network of adder_zoo.export_onnx in ONNX Runtime with our kernels:  onnx_session NETWORK.onnx LIBRARY
// reads images from standard input, float32 [N, C, H, W], and prints the logits. Both shapes are in the file.
#include <stdio.h>
#include <stdlib.h>

#include "onnxruntime_c_api.h"

static const OrtApi *ort;

static void check(OrtStatus *status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  exit(1);
}

// The sizes of the session's input; the number of images is left open in the file.
static size_t image_shape(const OrtSession *session, int64_t shape[4]) {
  OrtTypeInfo *type;
  const OrtTensorTypeAndShapeInfo *tensor;
  check(ort->SessionGetInputTypeInfo(session, 0, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &tensor));
  check(ort->GetDimensions(tensor, shape, 4));
  ort->ReleaseTypeInfo(type);
  return (size_t)(shape[1] * shape[2] * shape[3]);
}

int main(int count, char **arguments) {
  if (count != 3) return fprintf(stderr, "onnx_session NETWORK.onnx LIBRARY\n"), 2;
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  OrtEnv *environment;
  OrtSessionOptions *options;
  OrtSession *session;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "adder", &environment));
  check(ort->CreateSessionOptions(&options));
  check(ort->RegisterCustomOpsLibrary_V2(options, arguments[2])); // the line that gives it our kernels
  check(ort->CreateSession(environment, arguments[1], options, &session));

  int64_t shape[4];
  const size_t pixels = image_shape(session, shape);
  float *const image = malloc(pixels * sizeof(float));
  shape[0] = 1;
  OrtMemoryInfo *memory;
  OrtValue *input, *output = NULL;
  check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, image, pixels * sizeof(float), shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
  const char *const inputs[] = {"images"}, *const outputs[] = {"logits"};
  while (fread(image, sizeof(float), pixels, stdin) == pixels) {
    OrtTensorTypeAndShapeInfo *info;
    size_t logits;
    float *values;
    check(ort->Run(session, NULL, inputs, (const OrtValue *const *)&input, 1, outputs, 1, &output));
    check(ort->GetTensorTypeAndShape(output, &info));
    check(ort->GetTensorShapeElementCount(info, &logits));
    check(ort->GetTensorMutableData(output, (void **)&values));
    for (size_t i = 0; i < logits; ++i) printf("%.9g%c", values[i], i + 1 < logits ? ' ' : '\n');
    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(output);
    output = NULL;
  }
  ort->ReleaseValue(input);
  ort->ReleaseMemoryInfo(memory);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(environment);
  free(image);
  return 0;
}
