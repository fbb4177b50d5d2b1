"""A static page that runs integer networks in a browser: the generated C as WebAssembly, and all around it."""
