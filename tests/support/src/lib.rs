//! Real servers, fakes, and archives for the tests.
