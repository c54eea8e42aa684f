"""From labelled images in whatever form a program has them to an adapter that predicts, in one call; and features of
images."""
