"""What measuring needs: inputs, shapes, the machine, timing."""
