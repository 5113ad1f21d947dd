"""What users call: `EagleModel`, and `EaModel` with EAGLE's own names."""
