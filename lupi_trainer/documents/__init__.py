"""Documents to questions that can be taught: read, cut into chunks, asked about, filtered, held out, written."""
