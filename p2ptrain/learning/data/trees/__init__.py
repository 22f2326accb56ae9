"""Where class folders live, and which of their files a data set's maker lists for what."""
