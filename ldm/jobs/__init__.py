"""Work that outlives one picture: file numbers, whole files or none, digests."""
