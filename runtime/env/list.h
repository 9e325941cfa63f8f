/* list.h - every environment that is built in: peri__env_NAME in a file of its own, in the order of listings. */
X(cartpole)
