"""Tensors of requests and results as the arrays of predictors: conversion, checks, and the choice of outputs."""
