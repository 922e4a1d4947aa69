"""The server: receives time steps, keeps them in a training buffer, trains."""
