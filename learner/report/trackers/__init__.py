"""Where the report is written to: TensorBoard's event files, and on request Weights & Biases or Trackio."""
