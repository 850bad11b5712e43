// Lets PyTorch's CPU build accept tensors that say they are on cuda:0: one device, nothing to do.
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct PretendGuard final : public impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return Device(DeviceType::CUDA, 0); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device d) const noexcept override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const noexcept override {
    return Stream(Stream::DEFAULT, s.device());
  }
  DeviceIndex deviceCount() const noexcept override { return 1; }
};
static PretendGuard guard;
static impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);
