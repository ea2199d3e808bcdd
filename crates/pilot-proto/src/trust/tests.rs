//! Two nodes and a registry on paper: messages are carried by hand, time is an argument.
