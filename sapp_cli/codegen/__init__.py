"""Machine code for the CPU that this runs on, generated through LLVM; what it computes is other rooms' business."""
