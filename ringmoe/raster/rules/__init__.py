"""What the rules of ``quality`` are made of: windows of cells, lines, a spectral test for clouds, picture hashes."""
