"""What people see of a run: TensorBoard, the progress line and ``summary.json``."""
