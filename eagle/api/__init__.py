"""What users call: `EagleModel`, its arguments and outputs, and decoding inside `transformers`."""
