//! The runtime: supervision and the five links in their local and faulty forms. Knows no reinforcement learning.
